"""What a COCO-form file holds, in one readable summary, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.openimages_objects import Objects
from longtail_det2.data.hierarchy import LabelHierarchy

_NAMES = 8


@dataclass(frozen=True)
class CocoReport:
    """Numbers and findings of one file.

    Attributes:
        findings: what is wrong or remarkable.
        summary: what the store's header keeps: {name: number}.
        facts: (name, words) of the lines about the content.
    """

    findings: CocoFindings
    summary: dict[str, Any]
    facts: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """The summary, a few lines long whatever the file's size."""
        width = max(len(name) for name, _ in self.facts)
        lines = [str(self.findings.path)] + [f"  {name:{width}}  {words}" for name, words in self.facts]
        problems = self.findings.lines()
        return "\n".join(lines + (problems or ["no problems found"]))


def make_report(
    findings: CocoFindings,
    objects: Objects,
    num_masks: int,
    per_image: np.ndarray,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    tree: LabelHierarchy | None,
    num_rows: int,
) -> CocoReport:
    """Counts what will be in the store, and notes classes and images without objects.

    Args:
        findings: so far.
        objects: of the images that are kept.
        num_masks: objects that have a mask.
        per_image: (n,) objects of each kept image.
        image_ids: the n ids.
        class_names: K names.
        tree: hierarchy of the classes, if there is one.
        num_rows: labels in the file.
    """
    per_object = np.diff(objects.label_offsets)
    image_of_label = np.repeat(objects.image, per_object).astype(np.int64)
    pairs = np.unique(image_of_label * max(len(class_names), 1) + objects.label)
    images_of = np.bincount(pairs % max(len(class_names), 1), minlength=len(class_names))
    unused = images_of == 0
    if tree is not None:
        unused &= ~np.any(tree.descendants[:, ~unused], axis=1)
    _note_unused(findings, unused, class_names, per_image, image_ids)
    left_out = num_rows - len(objects.label) - objects.num_duplicates
    summary = {
        "images": len(image_ids),
        "images_left_out": findings.count("missing_image") + findings.count("other_size"),
        "images_without_objects": int(np.count_nonzero(per_image == 0)),
        "objects": len(objects.box),
        "objects_with_several_labels": int(np.count_nonzero(per_object > 1)),
        "objects_with_mask": num_masks,
        "labels": len(objects.label),
        "label_rows_left_out": left_out + findings.count("bad_box") + findings.count("unknown_category"),
        "repeated_labels": objects.num_duplicates,
        "labels_merged_into_objects": objects.num_merged,
        "objects_merged_by_iou": objects.num_merged_near,
        "classes_without_objects": int(np.count_nonzero(unused)),
    }
    several = summary["objects_with_several_labels"]
    used = images_of[images_of > 0]
    facts = [
        (
            "images",
            f"{len(image_ids):,}" + (f", with {_spread(per_image)} objects each" if image_ids else ""),
        ),
        ("objects", f"{len(objects.box):,}, of which {several:,} have several labels"),
        ("masks", f"{num_masks:,} objects have one" if num_masks else "none"),
        (
            "labels",
            f"{len(objects.label):,} of {len(used):,} classes; {len(class_names):,} classes are listed",
        ),
        ("images per class", f"{_spread(used)}{_rarest(images_of, class_names)}" if len(used) else "-"),
        ("hierarchy", "none" if tree is None else _describe_tree(tree)),
    ]
    return CocoReport(findings, summary, tuple(facts))


def _note_unused(
    findings: CocoFindings,
    unused: np.ndarray,
    class_names: Sequence[str],
    per_image: np.ndarray,
    image_ids: Sequence[str],
) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if seen.setdefault(name, index) != index:
            findings.add("same_name", f"categories number {seen[name]} and {index} are both called {name!r}")
    classes = [class_names[int(index)] for index in np.flatnonzero(unused)]
    if classes:
        findings.add("unused_class", quote_some(classes), count=len(classes))
    empty = [image_ids[int(index)] for index in np.flatnonzero(per_image == 0)]
    if empty:
        findings.add("empty_image", quote_some(empty), count=len(empty))


def quote_some(names: Sequence[str]) -> str:
    """The first names, quoted, with three dots for the others."""
    return ", ".join(map(repr, names[:_NAMES])) + (", ..." if len(names) > _NAMES else "")


def _spread(counts: np.ndarray) -> str:
    return f"{counts.min():,} to {counts.max():,} (median {np.median(counts):g})"


def _rarest(images_of: np.ndarray, class_names: Sequence[str]) -> str:
    once = int(np.count_nonzero(images_of == 1))
    most = int(np.argmax(images_of))
    rare = f"; {once:,} classes have a single image" if once else ""
    return f"; most: {class_names[most]}{rare}"


def _describe_tree(tree: LabelHierarchy) -> str:
    children = sum(len(above) > 0 for above in tree.parents)
    return f"{children:,} classes have parents; depth {int(tree.depth.max(initial=0))}"
