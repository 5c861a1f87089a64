"""COCO and LVIS JSON files (several labels per object and a hierarchy allowed) to an annotation store."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.datasets.coco_checks import (
    KINDS,
    CocoAnnotations,
    CocoFile,
    check_image_files,
    is_usable_text,
)
from longtail_det2.data.hierarchy import HierarchyError, LabelHierarchy, ParsedHierarchy, read_parents
from longtail_det2.data.issues import Issues
from longtail_det2.data.masks import Segmentation, encode_masks
from longtail_det2.data.store import AnnotationStore, ImageLabel, rows_per_class, write_store
from longtail_det2.data.store_writer import FREQUENCIES
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file
from longtail_det2.utils.ragged import offsets_of

_NAMES = 8


@dataclass(frozen=True)
class CocoOptions:
    """How a file is read; all have defaults.

    Attributes:
        skip_bad: leave bad entries out instead of refusing the file. An object with a bad mask stays, without
            it; labels of the hierarchy that are neither categories nor above one go, and categories that a
            tree does not contain have no parents.
        merge_equal_boxes: annotations of one image with equal boxes are labels of one object. (One annotation
            with `category_ids` is one object with several labels in any case.)
        masks: keep the masks of the objects, where the file has any.
        workers: processes that read image headers (more than one needs a `__main__` guard in the caller).
    """

    skip_bad: bool = False
    merge_equal_boxes: bool = False
    masks: bool = True
    workers: int = 1

    def for_header(self) -> dict[str, Any]:
        """What the content of the store depends on, as its header keeps it."""
        return {name: value for name, value in asdict(self).items() if name != "workers"}


@dataclass(frozen=True)
class CocoReport:
    """What is in one file, in numbers that the store's header keeps, and what is wrong with it."""

    issues: Issues
    summary: dict[str, int]
    content: dict[str, Any]  # arguments of `write_store`

    def text(self) -> str:
        """The report as a table, a few lines long whatever the file's size."""
        numbers = [f"{value:>12,}  {name.replace('_', ' ')}" for name, value in self.summary.items() if value]
        return "\n".join([self.issues.source, *numbers, self.issues.table() or "no problems found"])


def prepare_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    hierarchy: str | os.PathLike[str] | None = None,
    *,
    report: Callable[[CocoReport], object] | None = None,
    **options: Any,
) -> AnnotationStore:
    """Make an annotation store from a COCO-form JSON file.

    Beyond COCO, an annotation may have `category_ids` (all labels of the object) beside or instead of
    `category_id`; `iscrowd` or `is_group_of` marks a box around a group; images may have `neg_category_ids`,
    `pos_category_ids` and `not_exhaustive_category_ids`; instead of `file_name`, they may have LVIS's
    `coco_url`, of which the last folder and the name count ("train2017/000000391895.jpg"). `segmentation` is
    kept as it is, polygons or RLE, and so is `area`; key points are not kept. Class ids are the category ids
    as strings, in their order. Categories keep `name` and LVIS's `frequency`; classes that only the hierarchy
    names are as frequent as the most frequent category below them.

    Args:
        json_file: the annotations.
        image_root: folder that the file names are relative to (absolute ones must lie below it). The sizes of
            all images are read from the file headers and compared. None: the file must say the sizes.
        output: directory of the store; a store that is there is replaced.
        hierarchy: JSON file, an Open Images tree or `{"child": ["parent", ...]}`, that names the categories
            by their ids or by their names. Parents that are no categories become classes.
        report: called once, before anything is written, with what was found.
        **options: see `CocoOptions`.

    Raises:
        DataError: anything wrong with the file (the first entry is named, the others are counted) or with
            the place of the store.
        HierarchyError: the hierarchy does not fit.
    """
    found = check_coco(json_file, image_root, hierarchy, **options)
    files = [("coco", json_file)] + ([] if hierarchy is None else [("hierarchy", hierarchy)])
    settings = CocoOptions(**options).for_header()
    return write_checked(found, output, report, files=files, options=settings, image_root=image_root)


def write_checked(
    found: CocoReport,
    output: str | os.PathLike[str],
    report: Callable[[CocoReport], object] | None,
    files: Sequence[tuple[str, str | os.PathLike[str]]],
    **header: Any,
) -> AnnotationStore:
    """Report what was found, and write the store unless there are errors.

    Args:
        found: what is in the files.
        output: directory of the store; a store that is there is replaced.
        report: called with `found` before anything is written.
        files: (role, file) of all sources.
        **header: `options` and `image_root` of `write_store`.

    Raises:
        DataError: there are errors, or something is wrong with the place of the store.
    """
    if report is not None:
        report(found)
    found.issues.raise_errors()
    sources = [{"role": role, **describe_file(file)} for role, file in files]
    return write_store(output, **found.content, **header, sources=sources, summary=found.summary)


def check_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    hierarchy: str | os.PathLike[str] | None = None,
    **options: Any,
) -> CocoReport:
    """What `prepare_coco` would say of a file, without making a store; `issues.errors` has the errors.

    Raises:
        DataError: the file is no COCO-form JSON at all, or there is no such image folder.
        HierarchyError: the hierarchy does not fit.
    """
    path, settings = Path(json_file), CocoOptions(**options)
    issues = Issues(path, KINDS, settings.skip_bad)
    root = None if image_root is None else Path(image_root)
    source = CocoFile(path, None if root is None else os.path.abspath(root), issues)
    tree = LabelHierarchy.flat(source.class_ids)
    if hierarchy is not None and not issues.errors:
        names = source.class_ids, source.class_names
        tree = read_coco_hierarchy(Path(hierarchy), *names, skip_bad=settings.skip_bad)
        added = tree.class_ids[len(source.class_ids) :]
        issues.add("added_class", quote_names(added), len(added))
        source.class_ids += added
        source.class_names += added
    images = source.read_images()
    check_image_files(images, root, issues, settings.workers)
    annotations = source.read_annotations(images, settings.masks)
    if not images.keep.any() or not source.class_ids:
        issues.raise_errors()
        raise DataError(f"{path}: no sound image or category is left")
    columns = images.columns()
    columns |= _object_columns(annotations, columns["image_id"], tree, issues, settings)
    counts = rows_per_class(columns["label_offsets"][columns["object_offsets"]], columns["label"], tree)
    frequency = _find_frequency(source, tree)
    content = {
        "columns": columns,
        "class_ids": source.class_ids,
        "class_names": source.class_names,
        "form": "lvis" if source.is_lvis else "coco",
        "parents": None if hierarchy is None else tree.to_parents(),
        "frequency": frequency,
    }
    return CocoReport(issues, _summarize(source, columns, counts, frequency), content)


def _object_columns(
    annotations: CocoAnnotations,
    image_ids: np.ndarray,
    tree: LabelHierarchy,
    issues: Issues,
    settings: CocoOptions,
) -> dict[str, np.ndarray]:
    """The columns of the objects, from left to right per image, labels most specific first."""
    num_classes, rank = tree.num_classes, tree.specificity_order(annotations.label)
    keys = (annotations.flags, *annotations.box.T[::-1], annotations.image)
    order = np.lexsort(keys)
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    if not settings.merge_equal_boxes and not starts.all():
        image = bytes(image_ids[annotations.image[order[~starts][0]]]).decode()
        issues.add("equal_boxes", f"two annotations of image {image!r}", int(np.count_nonzero(~starts)))
        starts[:] = True
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = np.cumsum(starts) - 1
    heads = order[starts]
    labels = np.repeat(owner, np.diff(annotations.label_offsets)) * num_classes + rank[annotations.label]
    labels = np.unique(labels)
    columns = {
        "object_offsets": np.searchsorted(annotations.image[heads], np.arange(len(image_ids) + 1)),
        "box": annotations.box[heads],
        "flags": annotations.flags[heads],
        "label_offsets": offsets_of(np.bincount(labels // num_classes, minlength=len(heads))),
        "label": np.argsort(rank)[labels % num_classes].astype(np.int32),
    }
    best = rank[annotations.label]  # of each annotation, when the next lines are done
    if len(order):
        best = np.minimum.reduceat(best, annotations.label_offsets[:-1])
    able = np.array([mask is not None for mask in annotations.masks], dtype=bool)
    if able.any():
        masks: list[Segmentation | None] = [None] * len(heads)
        for row in representative_rows(owner, best, able).tolist():
            masks[owner[row]] = annotations.masks[row]
        columns |= encode_masks(masks)
    known = representative_rows(owner, best, ~np.isnan(annotations.area))
    if len(known):
        columns["area"] = np.full(len(heads), np.nan)
        columns["area"][owner[known]] = annotations.area[known]
    return columns


def representative_rows(owner: np.ndarray, rank: np.ndarray, able: np.ndarray) -> np.ndarray:
    """Per object, the most specific one of its `able` rows (a,), the first among equals; some have none."""
    rows = np.flatnonzero(able)
    rows = rows[np.lexsort((rows, rank[rows], owner[rows]))]
    return rows[np.diff(owner[rows], prepend=-1) != 0]


def read_coco_hierarchy(
    path: Path, class_ids: Sequence[str], class_names: Sequence[str], *, skip_bad: bool = False
) -> LabelHierarchy:
    """Read a hierarchy file that names the classes by their ids or by their names.

    It is read by names if more of its labels are names than ids. Labels above a class that are no classes
    become classes, after the others; their ids are their names.

    Args:
        path: `{"child": ["parent", ...]}` or an Open Images tree.
        class_ids: of the categories.
        class_names: their names.
        skip_bad: leave out labels that are neither classes nor above one, and give no parents to classes that
            a tree does not contain, instead of refusing the file.

    Raises:
        HierarchyError: the file does not fit the classes, or names that it uses are not distinct.
    """
    parsed = _by_id(path, read_parents(path), class_ids, class_names)
    above, pending = set(class_ids), list(class_ids)
    while pending:
        new = set(parsed.parents.get(pending.pop(), ())) - above
        above |= new
        pending += new
    absent = [label for label in class_ids if label not in parsed.parents]
    if absent and parsed.root is not None and not skip_bad:
        raise HierarchyError(
            f"{path}: {len(absent)} of {len(class_ids)} categories are not in the tree (first: "
            f"{absent[0]!r}); add them, or give them no parents with --skip-bad"
        )
    lost = [label for label in parsed.parents if label not in above and label != parsed.root]
    if lost and not skip_bad:
        close = difflib.get_close_matches(lost[0], [*class_names, *class_ids], n=1)
        guess = f", do you mean {close[0]!r}?" if close else ""
        raise HierarchyError(
            f"{path}: {len(lost)} labels are neither categories nor above one (first: {lost[0]!r}{guess}); "
            "correct them, or leave them out with --skip-bad"
        )
    known = {*class_ids, parsed.root}
    added = [label for label in parsed.parents if label in above and label not in known]
    if not all(map(is_usable_text, added)):
        raise HierarchyError(f"{path}: an empty text, or one that no file can hold, is above a category")
    # Without a root, classes that a tree does not contain have no parents.
    return LabelHierarchy.from_json(parsed._replace(root=None), [*class_ids, *added], "contract")


def _by_id(
    path: Path, parsed: ParsedHierarchy, class_ids: Sequence[str], class_names: Sequence[str]
) -> ParsedHierarchy:
    labels, known = set(parsed.parents), set(class_ids)
    if len(labels & set(class_names)) <= len(labels & known):
        return parsed
    twice = [name for name, count in Counter(class_names).items() if count > 1 and name in labels]
    if twice:
        raise HierarchyError(f"{path}: several categories are called {twice[0]!r}; use category ids instead")
    ids = dict(zip(class_names, class_ids, strict=True))
    # A label that is no name must not be taken for the id that it may happen to equal.
    ids.update({label: f"{label} (no name)" if label in known else label for label in labels - set(ids)})
    return ParsedHierarchy(
        {ids[label]: [ids[parent] for parent in above] for label, above in parsed.parents.items()},
        root=None if parsed.root is None else ids[parsed.root],
        name=parsed.name,
    )


def _find_frequency(source: CocoFile, tree: LabelHierarchy) -> list[str] | None:
    """LVIS's frequency of each class; None where the file has none."""
    letters: list[Any] = [entry.get("frequency") for entry in source.categories.values()]
    if all(letter is None for letter in letters):
        return None
    for (key, entry), letter in zip(source.categories.items(), letters, strict=True):
        if letter not in FREQUENCIES:
            what = "no frequency, but others have" if letter is None else f"the frequency {letter!r}"
            source.issues.add("frequency", f"category {key!r} ({entry.get('name', '')!r}) has {what}")
    if source.issues.count("frequency"):
        return None
    # An image of a class has the classes above it too: an added one is as frequent as any below it.
    levels = np.array([FREQUENCIES.index(letter) for letter in letters])
    ancestors = tree.ancestors
    for added in range(len(levels), len(source.class_ids)):
        letters.append(FREQUENCIES[levels[ancestors[: len(levels), added]].max()])
    return letters


def _summarize(
    source: CocoFile, columns: dict[str, np.ndarray], counts: np.ndarray, frequency: Sequence[str] | None
) -> dict[str, int]:
    """Count what will be in the store, and note classes and images without objects."""
    per_image, per_object = np.diff(columns["object_offsets"]), np.diff(columns["label_offsets"])
    empty = [one.decode() for one in columns["image_id"][per_image == 0]]
    unused = [name for name, count in zip(source.class_names, counts.tolist(), strict=True) if count == 0]
    for kind, some in (("empty_image", empty), ("unused_class", unused)):
        source.issues.add(kind, quote_names(some), len(some))
    masks = [np.diff(columns[name]) for name in ("polygon_offsets", "run_offsets") if name in columns]
    status = np.bincount(columns["image_label_status"], minlength=len(ImageLabel)).tolist()
    letters = Counter(frequency or ())
    return {
        "images": len(per_image),
        "images_left_out": source.num_images - len(per_image),
        "annotations": source.num_annotations,
        "objects": len(per_object),
        "objects_with_several_labels": int(np.count_nonzero(per_object > 1)),
        "objects_with_mask": int(np.count_nonzero(sum(masks))),
        "labels": len(columns["label"]),
        "classes": len(source.class_names),
        "rare_classes": letters["r"],
        "common_classes": letters["c"],
        "frequent_classes": letters["f"],
        "labels_verified_absent": status[ImageLabel.ABSENT],
        "labels_verified_present": status[ImageLabel.PRESENT],
        "labels_not_exhaustive": status[ImageLabel.NOT_EXHAUSTIVE],
    }


def quote_names(names: Sequence[str]) -> str:
    """The first names, quoted, with three dots for the others."""
    return ", ".join(map(repr, names[:_NAMES])) + (", ..." if len(names) > _NAMES else "")
