"""COCO and LVIS JSON files (several labels per object and a hierarchy allowed) to an annotation store."""

from __future__ import annotations

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
    check_boxes,
    check_image_files,
)
from longtail_det2.data.datasets.coco_hierarchy import read_coco_hierarchy
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.issues import Issues
from longtail_det2.data.masks import Segmentation, check_segmentation, encode_masks
from longtail_det2.data.store import AnnotationStore, ImageLabel, rows_per_class, write_store
from longtail_det2.data.store_writer import FREQUENCIES
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file
from longtail_det2.utils.ragged import offsets_of

LVIS_THRESHOLDS = (10, 100)
"""Most training images of a rare and of a common class (Gupta et al., LVIS, CVPR 2019)."""
_RULES = ("file", "images", "none")
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
        frequency: LVIS's frequency of each class: "file" takes what the categories say, "images" counts the
            images with the class here (training splits), the folder of a store takes its letters; "none".
        workers: processes that read image headers (more than one needs a `__main__` guard in the caller).
    """

    skip_bad: bool = False
    merge_equal_boxes: bool = False
    masks: bool = True
    frequency: str = "file"
    workers: int = 1

    def for_header(self) -> dict[str, Any]:
        """What the content of the store depends on, as its header keeps it."""
        return {name: value for name, value in asdict(self).items() if name != "workers"}


@dataclass(frozen=True)
class CocoReport:
    """What is in one file, in numbers that the store's header keeps, and what is wrong with it."""

    issues: Issues
    summary: dict[str, int]

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
    settings = CocoOptions(**options)
    found, content = _read(Path(json_file), image_root, hierarchy, settings)
    if report is not None:
        report(found)
    found.issues.raise_errors()
    files = [("coco", json_file)] + ([] if hierarchy is None else [("hierarchy", hierarchy)])
    if settings.frequency not in _RULES:
        files.append(("frequency", Path(settings.frequency) / "classes.json"))
    sources = [{"role": role, **describe_file(file)} for role, file in files]
    header = {"image_root": image_root, "sources": sources, "options": settings.for_header()}
    return write_store(output, **content, **header, summary=found.summary)


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
    return _read(Path(json_file), image_root, hierarchy, CocoOptions(**options))[0]


def frequency_letters(
    image_counts: Sequence[int] | np.ndarray, thresholds: tuple[int, int] = LVIS_THRESHOLDS
) -> list[str]:
    """LVIS's frequency of each class: "r" up to thresholds[0] images, "c" up to thresholds[1], "f" above.

    Args:
        image_counts: (K,) images with the class in the training split.
        thresholds: most images of a rare and of a common class.
    """
    places = np.searchsorted(thresholds, np.asarray(image_counts), side="left")
    return [FREQUENCIES[place] for place in places.tolist()]


def _read(
    path: Path,
    image_root: str | os.PathLike[str] | None,
    hierarchy: str | os.PathLike[str] | None,
    settings: CocoOptions,
) -> tuple[CocoReport, dict[str, Any]]:
    """The report, and what `write_store` takes of the file's content."""
    issues = Issues(path, KINDS, settings.skip_bad)
    root = None if image_root is None else Path(image_root)
    source = CocoFile(path, None if root is None else os.path.abspath(root), issues)
    tree = LabelHierarchy.flat(source.class_ids)
    if hierarchy is not None and not issues.errors:
        names = source.class_ids, source.class_names
        tree = read_coco_hierarchy(Path(hierarchy), *names, skip_bad=settings.skip_bad)
        added = tree.class_ids[len(source.class_ids) :]
        issues.add("added_class", _quote(added), len(added))
        source.class_ids += added
        source.class_names += added
    images = source.read_images()
    annotations = source.read_annotations()
    check_image_files(images, root, issues, settings.workers)
    annotations = annotations.select(np.flatnonzero(images.keep[annotations.image]))
    box, keep = check_boxes(annotations, images.sizes, issues)
    annotations, box = annotations.select(np.flatnonzero(keep)), box[keep]
    annotations.image = (np.cumsum(images.keep) - 1)[annotations.image].astype(np.int32)
    if not images.keep.any() or not source.class_ids:
        issues.raise_errors()
        raise DataError(f"{path}: no sound image or category is left")
    columns = images.columns()
    columns |= _object_columns(annotations, box, columns["image_size"], tree, issues, settings)
    counts = rows_per_class(columns["label_offsets"][columns["object_offsets"]], columns["label"], tree)
    frequency = _find_frequency(source, tree, counts, settings.frequency)
    content = {
        "columns": columns,
        "class_ids": source.class_ids,
        "class_names": source.class_names,
        "form": "lvis" if source.is_lvis else "coco",
        "parents": None if hierarchy is None else tree.to_parents(),
        "frequency": frequency,
    }
    return CocoReport(issues, _summarize(source, columns, counts, frequency)), content


def _object_columns(
    annotations: CocoAnnotations,
    box: np.ndarray,
    sizes: np.ndarray,
    tree: LabelHierarchy,
    issues: Issues,
    settings: CocoOptions,
) -> dict[str, np.ndarray]:
    """The columns of the objects, from left to right per image, labels most specific first.

    Args:
        annotations: a of them, of images that are kept.
        box: (a, 4) float32 shares.
        sizes: (n, 2) height and width of the images.
        tree: of the classes.
        issues: takes equal boxes and bad masks.
        settings: whether equal boxes are merged, and masks kept.
    """
    num_classes, rank = tree.num_classes, tree.specificity_order(annotations.label)
    keys = (annotations.flags, *box.T[::-1], annotations.image)
    order = np.lexsort(keys)
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    if not settings.merge_equal_boxes and not starts.all():
        example = f"{annotations.where[order[~starts][0]]} has the box of another one"
        issues.add("equal_boxes", example, int(np.count_nonzero(~starts)))
        starts[:] = True
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = np.cumsum(starts) - 1
    heads = order[starts]
    labels = np.repeat(owner, np.diff(annotations.label_offsets)) * num_classes + rank[annotations.label]
    labels = np.unique(labels)
    columns = {
        "object_offsets": np.searchsorted(annotations.image[heads], np.arange(len(sizes) + 1)),
        "box": box[heads],
        "flags": annotations.flags[heads],
        "label_offsets": offsets_of(np.bincount(labels // num_classes, minlength=len(heads))),
        "label": np.argsort(rank)[labels % num_classes].astype(np.int32),
    }
    best = rank[annotations.label]  # of each annotation, when the next lines are done
    if len(order):
        best = np.minimum.reduceat(best, annotations.label_offsets[:-1])
    if settings.masks:
        masks = _read_masks(annotations, owner, best, sizes, issues)
        columns |= encode_masks(masks) if any(mask is not None for mask in masks) else {}
    known = representative_rows(owner, best, ~np.isnan(annotations.area))
    if len(known):
        columns["area"] = np.full(len(heads), np.nan)
        columns["area"][owner[known]] = annotations.area[known]
    return columns


def representative_rows(owner: np.ndarray, rank: np.ndarray, able: np.ndarray) -> np.ndarray:
    """One row per object: the most specific one of its able rows, the first among equals.

    Args:
        owner: (a,) object of each row.
        rank: (a,) rank of each row from the most specific one.
        able: (a,) bool, rows that have what is asked for.

    Returns:
        The rows, by object; objects without an able row have none.
    """
    rows = np.flatnonzero(able)
    rows = rows[np.lexsort((rows, rank[rows], owner[rows]))]
    return rows[np.diff(owner[rows], prepend=-1) != 0]


def _read_masks(
    annotations: CocoAnnotations, owner: np.ndarray, rank: np.ndarray, sizes: np.ndarray, issues: Issues
) -> list[Segmentation | None]:
    """The mask of each object, None where there is none; see :func:`representative_rows`."""
    masks: list[Segmentation | None] = [None] * (int(owner.max(initial=-1)) + 1)
    able = np.array([bool(mask) and mask != [[]] for mask in annotations.segmentation], dtype=bool)
    for row in representative_rows(owner, rank, able).tolist():
        try:
            size = sizes[annotations.image[row]].tolist()
            masks[owner[row]] = mask = check_segmentation(annotations.segmentation[row], *size)
            if mask is None:
                raise ValueError("without area inside its image")
        except ValueError as error:
            issues.add("mask", f"{annotations.where[row]} has a segmentation {error}")
        annotations.segmentation[row] = None  # nobody else reads it, and it takes much memory
    return masks


def _find_frequency(
    source: CocoFile, tree: LabelHierarchy, counts: np.ndarray, rule: str
) -> list[str] | None:
    """LVIS's frequency of each class as the option `frequency` says; None where there is none."""
    if rule == "none":
        return None
    if rule == "images":
        return frequency_letters(counts)
    if rule != "file":
        return _frequency_of_store(rule, source.class_ids)
    letters: list[Any] = [entry.get("frequency") for entry in source.categories.values()]
    if all(letter is None for letter in letters):
        if source.is_lvis:
            source.issues.add("no_frequency", "no category has one", len(letters))
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


def _frequency_of_store(path: str, class_ids: Sequence[str]) -> list[str]:
    """The frequencies that another store, usually that of the training split, has for the same classes."""
    if not Path(path).is_dir():
        words = ", ".join(map(repr, _RULES))
        raise DataError(f"frequency is {path!r}; it must be {words} or the folder of a store")
    store = AnnotationStore.open(path)
    if store.class_frequencies is None:
        raise DataError(f"{path}: the store has no frequencies; make it with --frequency images")
    known = dict(zip(store.class_ids, store.class_frequencies, strict=True))
    absent = [one for one in class_ids if one not in known]
    if absent:
        raise DataError(f"{path}: the store has no class {absent[0]!r}; is it of these data?")
    return [known[one] for one in class_ids]


def _summarize(
    source: CocoFile, columns: dict[str, np.ndarray], counts: np.ndarray, frequency: Sequence[str] | None
) -> dict[str, int]:
    """Count what will be in the store, and note classes and images without objects."""
    per_image, per_object = np.diff(columns["object_offsets"]), np.diff(columns["label_offsets"])
    empty = [one.decode() for one in columns["image_id"][per_image == 0]]
    unused = [name for name, count in zip(source.class_names, counts.tolist(), strict=True) if count == 0]
    twice = [name for name, count in Counter(source.class_names).items() if count > 1]
    for kind, some in (("empty_image", empty), ("unused_class", unused), ("same_name", twice)):
        source.issues.add(kind, _quote(some), len(some))
    masks = [np.diff(columns[name]) for name in ("polygon_offsets", "run_offsets") if name in columns]
    status = columns["image_label_status"]
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
        "labels_verified_absent": int(np.count_nonzero(status == ImageLabel.ABSENT)),
        "labels_verified_present": int(np.count_nonzero(status == ImageLabel.PRESENT)),
        "labels_not_exhaustive": int(np.count_nonzero(status == ImageLabel.NOT_EXHAUSTIVE)),
    }


def _quote(names: Sequence[str]) -> str:
    """The first names, quoted, with three dots for the others."""
    return ", ".join(map(repr, names[:_NAMES])) + (", ..." if len(names) > _NAMES else "")
