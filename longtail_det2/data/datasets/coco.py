"""Own data in COCO form (several labels a box and a hierarchy allowed) to an annotation store."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.coco_hierarchy import Unlisted, read_coco_hierarchy
from longtail_det2.data.datasets.coco_json import CocoFile, CocoImages, CocoRows, Policy, check_boxes
from longtail_det2.data.datasets.coco_masks import read_masks
from longtail_det2.data.datasets.coco_report import CocoReport, make_report, quote_some
from longtail_det2.data.datasets.openimages_objects import Objects, group_rows, merge_near, specificity_rank
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.image_sizes import MAX_PIXELS, read_image_sizes
from longtail_det2.data.masks import Segmentation, encode_masks
from longtail_det2.data.sources import describe_file
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.utils.errors import DataError

_MOST_FILES = 100_000


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
        max_pixels: larger images count as unreadable.
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
    max_pixels: int = MAX_PIXELS
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
    images: CocoImages
    present: np.ndarray
    objects: Objects
    masks: list[Segmentation | None]
    tree: LabelHierarchy | None
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
    `not_exhaustive_category_ids`. `segmentation` is kept as it is, polygons or run lengths; key points are
    not kept. Class ids are the category ids as strings, in their order, which may have gaps.

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
    return write_store(
        output,
        _make_columns(content),
        content.source.class_ids,
        content.source.class_names,
        parents=None if content.tree is None else content.tree.to_parents(),
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
    present = _check_images(images, image_root, findings, settings)
    rows = rows.select(present[rows.image])
    boxes, keep = check_boxes(rows, images, findings)
    rows, boxes = rows.select(keep), boxes[keep]
    rows.image = (np.cumsum(present) - 1)[rows.image].astype(np.int32)
    objects, masks = _find_objects(
        rows, boxes, len(source.class_ids), tree, images.sizes[present], findings, settings
    )
    ids = [images.ids[index] for index in np.flatnonzero(present).tolist()]
    per_image = np.bincount(objects.image, minlength=len(ids))
    num_masks = sum(mask is not None for mask in masks)
    names = source.class_names
    report = make_report(findings, objects, num_masks, per_image, ids, names, tree, num_rows)
    return _Content(source, images, present, objects, masks if num_masks else [], tree, report)


def _find_objects(
    rows: CocoRows,
    boxes: np.ndarray,
    num_classes: int,
    tree: LabelHierarchy | None,
    sizes: np.ndarray,
    findings: CocoFindings,
    settings: CocoOptions,
) -> tuple[Objects, list[Segmentation | None]]:
    """Rows with equal (or nearly equal) boxes of one image as one object, and the objects' masks."""
    depth = np.zeros(num_classes, dtype=np.int64) if tree is None else tree.depth
    rank = specificity_rank(depth, np.bincount(rows.label, minlength=num_classes))
    objects = group_rows(rows.image, rows.label, boxes, rows.flags, rank, with_rows=settings.masks)
    if settings.merge_iou < 1:
        objects = merge_near(objects, settings.merge_iou, rank)
    return objects, read_masks(rows, objects, sizes, rank, findings) if settings.masks else []


def _make_columns(content: _Content) -> dict[str, np.ndarray]:
    """The columns of the store, of the images that are present."""
    images, objects = content.images, content.objects
    chosen = np.flatnonzero(content.present).tolist()
    labels = [images.labels[index] for index in chosen]
    return {
        **(encode_masks(content.masks) if content.masks else {}),
        "image_id": np.array([images.ids[index].encode() for index in chosen], dtype=np.bytes_),
        "file_name": np.array([images.file_names[index].encode() for index in chosen], dtype=np.bytes_),
        "image_size": images.sizes[content.present],
        "object_offsets": np.searchsorted(objects.image, np.arange(len(chosen) + 1)),
        "box": objects.box,
        "flags": objects.flags,
        "label_offsets": objects.label_offsets,
        "label": objects.label,
        "image_label_offsets": np.cumsum([0, *map(len, labels)]),
        "image_label": np.array([label for one in labels for label in one], dtype=np.int32),
        "image_label_positive": np.array([said for one in labels for said in one.values()], dtype=np.uint8),
    }


def _check_images(
    images: CocoImages,
    image_root: str | os.PathLike[str] | None,
    findings: CocoFindings,
    settings: CocoOptions,
) -> np.ndarray:
    """Compares sizes with the image files and fills unknown ones in: (n,) bool, which images to keep."""
    present = np.array([name != "" for name in images.file_names], dtype=bool)
    unknown = (images.sizes == 0).any(axis=1)
    if image_root is None:
        for index in np.flatnonzero(unknown).tolist():
            findings.add("no_size", f"image {images.ids[index]!r} has no height and width")
        findings.add("no_folder", "neither sizes nor files were compared")
        return present & ~unknown
    root = Path(image_root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    places = np.flatnonzero(present)
    names: Any = np.array([images.file_names[index].encode() for index in places.tolist()], dtype=np.bytes_)
    workers = settings.workers
    found, unreadable = read_image_sizes(root, names, workers, lambda count: None, settings.max_pixels)
    sizes = np.zeros_like(images.sizes)
    sizes[places] = found
    if len(unreadable) == len(places) > 0:
        findings.hint("missing_image", _guess_folder(root, images.file_names[int(places[0])]))
    for place, reason in unreadable:
        index = int(places[place])
        findings.add("missing_image", f"{root / images.file_names[index]}: cannot read the image ({reason})")
        present[index] = False
    differ = present & ~unknown & (sizes != images.sizes).any(axis=1)
    for index in np.flatnonzero(differ).tolist():
        (height, width), (real_height, real_width) = images.sizes[index].tolist(), sizes[index].tolist()
        findings.add(
            "other_size",
            f"image {images.ids[index]!r} is annotated as {width} x {height} pixels (width x height), but "
            f"{root / images.file_names[index]} has {real_width} x {real_height}",
        )
    present &= ~differ
    images.sizes = np.where(present[:, None], sizes, 1).astype(np.int32)
    return present


def _guess_folder(root: Path, file_name: str) -> str:
    """What may help where not a single file was found."""
    name = Path(file_name).name
    found = next((path for path in islice(root.rglob("*"), _MOST_FILES) if path.name == name), None)
    if found is None:
        return ""
    folder = str(found)[: -len(file_name)] if str(found).endswith(file_name) else str(found.parent)
    return f"{found} is there: did you mean the folder {folder.rstrip('/')}?"
