"""What a COCO-form file holds, in one readable summary, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.coco_json import CocoFile
from longtail_det2.data.datasets.lvis_json import describe_gaps
from longtail_det2.data.datasets.openimages_objects import Objects
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.masks import Segmentation
from longtail_det2.data.store import ImageLabel

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


def count_images(objects: Objects, tree: LabelHierarchy | None, num_classes: int) -> np.ndarray:
    """Images with an object of each class, or of a class below it: (K,) int64."""
    image = np.repeat(objects.image, np.diff(objects.label_offsets)).astype(np.int64)
    label = objects.label
    if tree is not None:
        image, label = tree.expand(image, label)
    pairs = np.unique(image * max(num_classes, 1) + label)
    return np.bincount(pairs % max(num_classes, 1), minlength=num_classes)


def make_report(
    findings: CocoFindings,
    source: CocoFile,
    columns: Mapping[str, np.ndarray],
    objects: Objects,
    masks: Sequence[Segmentation | None],
    tree: LabelHierarchy | None,
    num_rows: int,
    groups: str,
) -> CocoReport:
    """Counts what will be in the store, and notes classes and images without objects.

    Args:
        findings: so far.
        source: classes.
        columns: those of the n images that are kept.
        objects: of these images.
        masks: of the objects.
        tree: hierarchy of the classes, if there is one.
        num_rows: labels in the file.
        groups: LVIS's groups of classes in words; "" for other data.
    """
    per_image = np.bincount(objects.image, minlength=len(columns["image_id"]))
    per_object = np.diff(objects.label_offsets)
    images_of = count_images(objects, None, len(source.class_ids))
    unused = images_of == 0
    if tree is not None:
        unused &= ~np.any(tree.descendants[:, ~unused], axis=1)
    _note_unused(findings, unused, source.class_names, per_image, columns["image_id"])
    left_out = num_rows - len(objects.label) - objects.num_duplicates
    summary = {
        "images": len(per_image),
        "images_left_out": findings.count("missing_image") + findings.count("other_size"),
        "images_without_objects": int(np.count_nonzero(per_image == 0)),
        "objects": len(objects.box),
        "objects_with_several_labels": int(np.count_nonzero(per_object > 1)),
        "objects_with_mask": sum(mask is not None for mask in masks),
        "labels": len(objects.label),
        "label_rows_left_out": left_out + findings.count("bad_box") + findings.count("unknown_category"),
        "image_labels_left_out": findings.count("unknown_image_label"),
        "repeated_labels": objects.num_duplicates,
        "labels_merged_into_objects": objects.num_merged,
        "objects_merged_by_iou": objects.num_merged_near,
        "classes_without_objects": int(np.count_nonzero(unused)),
    }
    facts = _describe_content(summary, per_image, images_of, source.class_names)
    facts += [
        (name, words)
        for name, words in (
            ("category ids", describe_gaps(list(map(str, source.categories)))),
            ("image labels", _describe_image_labels(columns["image_label_status"])),
            ("frequency", groups),
        )
        if words
    ]
    facts.append(("hierarchy", "none" if tree is None else _describe_tree(tree)))
    return CocoReport(findings, summary, tuple(facts))


def _describe_content(
    summary: Mapping[str, int], per_image: np.ndarray, images_of: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, str]]:
    num_objects, several = summary["objects"], summary["objects_with_several_labels"]
    repeated, num_masks = summary["repeated_labels"], summary["objects_with_mask"]
    used = images_of[images_of > 0]
    return [
        (
            "images",
            f"{len(per_image):,}" + (f", with {_spread(per_image)} objects each" if len(per_image) else ""),
        ),
        ("objects", f"{num_objects:,}, of which {several:,} have several labels"),
        ("masks", f"{num_masks:,} of {num_objects:,} objects have one" if num_masks else "none"),
        (
            "labels",
            f"{summary['labels']:,} of {len(used):,} classes; {len(class_names):,} classes are listed"
            + (f"; {repeated:,} more repeat label and box of another" if repeated else ""),
        ),
        ("images per class", f"{_spread(used)}{_rarest(images_of, class_names)}" if len(used) else "-"),
    ]


def _describe_image_labels(values: np.ndarray) -> str:
    absent, present, partly = np.bincount(values, minlength=len(ImageLabel)).tolist()
    if not len(values):
        return ""
    return (
        f"{absent:,} verified absent, {present + partly:,} verified present, of which {partly:,} are not "
        "exhaustively annotated"
    )


def _note_unused(
    findings: CocoFindings,
    unused: np.ndarray,
    class_names: Sequence[str],
    per_image: np.ndarray,
    image_ids: np.ndarray,
) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if seen.setdefault(name, index) != index:
            findings.add("same_name", f"categories number {seen[name]} and {index} are both called {name!r}")
    classes = [class_names[int(index)] for index in np.flatnonzero(unused)]
    if classes:
        findings.add("unused_class", quote_some(classes), count=len(classes))
    empty = [image_ids[int(index)].decode() for index in np.flatnonzero(per_image == 0)]
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
