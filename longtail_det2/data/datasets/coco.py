"""Own data in COCO form (several labels a box and a hierarchy allowed) to an annotation store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.coco_hierarchy import Unlisted, read_coco_hierarchy
from longtail_det2.data.datasets.coco_image_files import check_image_files
from longtail_det2.data.datasets.coco_json import CocoFile, CocoImages, CocoRows, Policy, check_boxes
from longtail_det2.data.datasets.coco_masks import find_areas, read_masks
from longtail_det2.data.datasets.coco_report import CocoReport, count_images, make_report, quote_some
from longtail_det2.data.datasets.lvis_json import (
    FREQUENCY_RULES,
    describe_frequencies,
    frequencies_of_store,
    frequency_groups,
    read_frequencies,
)
from longtail_det2.data.datasets.openimages_objects import Objects, group_rows, merge_near, specificity_rank
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.masks import Segmentation, encode_masks
from longtail_det2.data.store import AnnotationStore, ImageLabel, write_store
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file


@dataclass(frozen=True)
class CocoOptions:
    """What to do about entries that are wrong, and how boxes become objects; all have defaults.

    Attributes:
        merge_iou: annotations with different labels that overlap at least so much become one object; 1: equal
            boxes only.
        masks: keep the masks of the objects, where the file has any.
        on_bad_box: labels with a malformed box, or one without area inside its image: "error" or "skip".
        on_bad_mask: objects with a malformed or empty mask; "skip" keeps them without it.
        on_missing_image: images that are absent or unreadable.
        on_size_mismatch: images that have another size than the file says.
        on_unknown_category: labels whose category id is not among the categories.
        unlisted: labels of the hierarchy that are no categories: "add" makes a class of each that is above a
            category, which every object of the categories below then bears too; "contract" leaves them out
            and hangs their children below the nearest categories above; or "error".
        missing: categories that a tree does not contain: "error", or "root" to give them no parents.
        frequency: LVIS's group of each class (rare, common, frequent): "file" takes what the categories say,
            if they say anything; "images" counts the images with the class here, and so is for the training
            split; the folder of a store, usually that of the training split, takes its groups; "none".
        workers: processes that read image headers (more than one needs a `__main__` guard in the caller).

    Raises:
        DataError: a value that is not allowed.
    """

    merge_iou: float = 1.0
    masks: bool = True
    on_bad_box: Policy = "error"
    on_bad_mask: Policy = "error"
    on_missing_image: Policy = "error"
    on_size_mismatch: Policy = "error"
    on_unknown_category: Policy = "error"
    unlisted: Unlisted = "add"
    missing: Literal["error", "root"] = "error"
    frequency: str = "file"
    workers: int = 1

    def __post_init__(self) -> None:
        for name in _POLICIES:
            if getattr(self, name) not in ("error", "skip"):
                raise DataError(f"{name} is {getattr(self, name)!r}; it must be 'error' or 'skip'")
        if not 0 < self.merge_iou <= 1:
            raise DataError(f"merge_iou is {self.merge_iou}; it must lie in (0, 1], 1 for equal boxes only")

    def for_header(self) -> dict[str, Any]:
        """What the content of the store depends on, as its header keeps it."""
        return {name: value for name, value in asdict(self).items() if name != "workers"}


_POLICIES = ("on_bad_box", "on_bad_mask", "on_missing_image", "on_size_mismatch", "on_unknown_category")


@dataclass(frozen=True)
class _Content:
    """Everything that goes into the store; what is wrong is in `report`."""

    source: CocoFile
    image_columns: dict[str, np.ndarray]
    objects: Objects
    masks: list[Segmentation | None]
    areas: np.ndarray
    tree: LabelHierarchy | None
    frequency: list[str] | None
    report: CocoReport


def prepare_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    hierarchy: str | os.PathLike[str] | None = None,
    *,
    report: Callable[[CocoReport], object] | None = None,
    **options: Any,
) -> AnnotationStore:
    """Makes an annotation store from a COCO-form JSON file.

    Beyond COCO, an annotation may have `category_ids` (all labels of the object) beside or instead of
    `category_id`; annotations of one image with equal boxes become one object with several labels; `iscrowd`
    or `is_group_of` marks a box around a group; images may have `neg_category_ids`, `pos_category_ids` and
    `not_exhaustive_category_ids`; instead of `file_name`, they may have LVIS's `coco_url`, of which the last
    folder and the name count ("train2017/000000391895.jpg"). `segmentation` is kept as it is, polygons or run
    lengths, and so is `area`; key points are not kept. Class ids are the category ids as strings, in their
    order, which may have gaps. Of the categories, `name` and LVIS's `frequency` are kept.

    Args:
        json_file: the annotations.
        image_root: folder that the file names are relative to. The sizes of all images are read from the file
            headers and compared. None: the file must say the sizes, and nothing is compared.
        output: directory of the store; a store that is there is replaced.
        hierarchy: JSON file, an Open Images tree or `{"child": ["parent", ...]}`, that names the categories
            by their ids or by their names. Parents that are no categories become classes (`unlisted`).
        report: called once, before anything is written, with what was found; see `CocoReport.text`.
        **options: see `CocoOptions`.

    Raises:
        DataError: anything wrong with the file (the first entry is named, the others are counted) or with
            the place of the store.
        HierarchyError: the hierarchy does not fit.
    """
    settings = CocoOptions(**options)
    content = _read(Path(json_file), image_root, hierarchy, settings)
    if report is not None:
        report(content.report)
    content.report.findings.raise_errors()
    sources = [{"role": "coco", **describe_file(json_file)}]
    if hierarchy is not None:
        sources.append({"role": "hierarchy", **describe_file(hierarchy)})
    if settings.frequency not in FREQUENCY_RULES:
        sources.append({"role": "frequency", **describe_file(Path(settings.frequency) / "classes.json")})
    return write_store(
        output,
        _make_columns(content),
        content.source.class_ids,
        content.source.class_names,
        form="lvis" if content.source.is_lvis else "coco",
        parents=None if content.tree is None else content.tree.to_parents(),
        frequency=content.frequency,
        image_root=image_root,
        sources=sources,
        options=settings.for_header(),
        summary=content.report.summary,
    )


def check_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    hierarchy: str | os.PathLike[str] | None = None,
    **options: Any,
) -> CocoReport:
    """What `prepare_coco` would say of a file, without making a store; `findings.errors` has the errors.

    Raises:
        DataError: the file is no COCO-form JSON at all, or there is no such image folder.
        HierarchyError: the hierarchy does not fit.
    """
    return _read(Path(json_file), image_root, hierarchy, CocoOptions(**options)).report


def _read(
    path: Path,
    image_root: str | os.PathLike[str] | None,
    hierarchy: str | os.PathLike[str] | None,
    settings: CocoOptions,
) -> _Content:
    findings = CocoFindings(path, [name for name in _POLICIES if getattr(settings, name) == "skip"])
    source = CocoFile(path, findings)
    tree = None
    if hierarchy is not None and not findings.errors:
        names = source.class_ids, source.class_names
        tree, added = read_coco_hierarchy(Path(hierarchy), *names, settings.unlisted, settings.missing)
        source.class_ids += added
        source.class_names += added
        if added:
            findings.add("added_class", quote_some(added), count=len(added))
    images = source.read_images()
    rows = source.read_rows()
    num_rows = len(rows.image)
    present = check_image_files(images, image_root, findings, settings.workers)
    rows = rows.select(present[rows.image])
    boxes, keep = check_boxes(rows, images, findings)
    rows, boxes = rows.select(keep), boxes[keep]
    rows.image = (np.cumsum(present) - 1)[rows.image].astype(np.int32)
    columns = _image_columns(images, np.flatnonzero(present))
    _note_contradictions(rows, columns, source, findings)
    objects, masks, areas = _find_objects(
        rows, boxes, len(source.class_ids), tree, columns["image_size"], findings, settings
    )
    image_counts = count_images(objects, tree, len(source.class_ids))
    frequency = _find_frequency(source, image_counts, findings, settings.frequency)
    groups = describe_frequencies(frequency, settings.frequency) if source.is_lvis or frequency else ""
    report = make_report(findings, source, columns, objects, masks, tree, num_rows, groups)
    has_masks = report.summary["objects_with_mask"] > 0
    masks = masks if has_masks else []
    return _Content(source, columns, objects, masks, areas, tree, frequency, report)


def _note_contradictions(
    rows: CocoRows, columns: dict[str, np.ndarray], source: CocoFile, findings: CocoFindings
) -> None:
    """Finds classes that an image is said not to have and that it has objects of."""
    absent = columns["image_label_status"] == ImageLabel.ABSENT
    image = np.repeat(np.arange(len(columns["image_id"])), np.diff(columns["image_label_offsets"]))[absent]
    label = columns["image_label"][absent]
    wrong = np.isin(
        image * len(source.class_ids) + label, rows.image * np.int64(len(source.class_ids)) + rows.label
    )
    for place in np.flatnonzero(wrong).tolist():
        name, one = source.class_names[int(label[place])], columns["image_id"][int(image[place])].decode()
        findings.add(
            "contradiction", f"image {one!r}, neg_category_ids has {name!r}, which has objects there"
        )


def _find_frequency(
    source: CocoFile, image_counts: np.ndarray, findings: CocoFindings, rule: str
) -> list[str] | None:
    """LVIS's group of each class as the option `frequency` says; None where there is none.

    Args:
        source: categories.
        image_counts: (K,) images in which each class occurs.
        findings: takes groups that are wrong, and classes without one.
        rule: "file", "images", "none" or the folder of a store.
    """
    if rule == "none":
        return None
    if rule == "images":
        return frequency_groups(image_counts)
    if rule != "file":
        return frequencies_of_store(rule, source.class_ids)
    found = read_frequencies(source.categories, findings)
    added = len(source.class_ids) - len(source.categories)
    if found is not None and added:
        names = quote_some(source.class_names[-added:])
        findings.add("no_frequency", f"{names}, which only the hierarchy names: so none is kept", count=added)
        return None
    if found is None and source.is_lvis and not findings.count("frequency"):
        example = "no category has a frequency, though the images are in LVIS's form"
        findings.add("no_frequency", example, count=len(source.class_ids))
    return found


def _find_objects(
    rows: CocoRows,
    boxes: np.ndarray,
    num_classes: int,
    tree: LabelHierarchy | None,
    sizes: np.ndarray,
    findings: CocoFindings,
    settings: CocoOptions,
) -> tuple[Objects, list[Segmentation | None], np.ndarray]:
    """Rows with equal (or nearly equal) boxes of one image as one object; the objects' masks and areas."""
    depth = np.zeros(num_classes, dtype=np.int64) if tree is None else tree.depth
    rank = specificity_rank(depth, np.bincount(rows.label, minlength=num_classes))
    objects = group_rows(rows.image, rows.label, boxes, rows.flags, rank, with_rows=True)
    if settings.merge_iou < 1:
        objects = merge_near(objects, settings.merge_iou, rank)
    masks = read_masks(rows, objects, sizes, rank, findings) if settings.masks else []
    return objects, masks, find_areas(rows, objects, rank)


def _image_columns(images: CocoImages, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the images at the places `chosen`, without offsets of objects."""
    places = chosen.tolist()
    return {
        "image_id": np.array([images.ids[index].encode() for index in places], dtype=np.bytes_),
        "file_name": np.array([images.file_names[index].encode() for index in places], dtype=np.bytes_),
        "image_size": images.sizes[chosen],
        **images.label_columns(chosen),
    }


def _make_columns(content: _Content) -> dict[str, np.ndarray]:
    """The columns of the store."""
    objects, num_images = content.objects, len(content.image_columns["image_id"])
    return {
        **content.image_columns,
        **(encode_masks(content.masks) if content.masks else {}),
        **({} if np.isnan(content.areas).all() else {"area": content.areas}),
        "object_offsets": np.searchsorted(objects.image, np.arange(num_images + 1)),
        "box": objects.box,
        "flags": objects.flags,
        "label_offsets": objects.label_offsets,
        "label": objects.label,
    }
