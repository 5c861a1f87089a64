"""Own data in COCO form (several labels a box and a hierarchy allowed) to an annotation store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.data.datasets.coco_json import BadBoxPolicy, CocoFile, CocoImages, CocoRows, check_boxes
from longtail_det2.data.datasets.openimages_csv import describe_file
from longtail_det2.data.datasets.openimages_objects import Objects, group_rows, merge_near, specificity_rank
from longtail_det2.data.hierarchy import HierarchyError, LabelHierarchy
from longtail_det2.data.hierarchy_io import ParsedHierarchy, read_parents
from longtail_det2.data.image_sizes import read_image_sizes
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.utils.errors import DataError


def prepare_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    hierarchy: str | os.PathLike[str] | None = None,
    *,
    merge_iou: float = 1.0,
    on_bad_box: BadBoxPolicy = "error",
    on_missing_image: Literal["error", "skip"] = "error",
    unlisted: Literal["error", "contract"] = "error",
    missing: Literal["error", "root"] = "error",
    workers: int = 1,
) -> AnnotationStore:
    """Makes an annotation store from a COCO-form JSON file.

    Beyond COCO, an annotation may have `category_ids` (all labels of the object) beside or instead of
    `category_id`; annotations of one image with equal boxes become one object with several labels; `iscrowd`
    or `is_group_of` marks a box around a group; images may have `neg_category_ids`, `pos_category_ids` and
    `not_exhaustive_category_ids`. Masks and key points are not kept. Class ids are the category ids as
    strings, in their order, which may have gaps.

    Args:
        json_file: the annotations.
        image_root: folder that the file names are relative to. The sizes of all images are read from the file
            headers and compared. None: the file must say the sizes, and nothing is compared.
        output: directory of the store; a store that is there is replaced.
        hierarchy: JSON file, an Open Images tree or `{"child": ["parent", ...]}`, that names the categories
            by their ids or by their names.
        merge_iou: annotations with different labels that overlap at least so much become one object; 1: equal
            boxes only.
        on_bad_box: what to do about boxes without area inside their image.
        on_missing_image: what to do about images that are absent or unreadable.
        unlisted: what to do about labels of the hierarchy that are no categories: "contract" leaves them out
            and hangs their children below the nearest categories above.
        missing: what to do about categories that a tree does not contain: "root" gives them no parents.
        workers: processes that read image headers (more than one needs a `__main__` guard in the caller).

    Raises:
        DataError: anything wrong with the file, naming the entry.
        HierarchyError: the hierarchy does not fit.
    """
    if not 0 < merge_iou <= 1:
        raise DataError(f"merge_iou is {merge_iou}; it must lie in (0, 1], 1 for equal boxes only")
    path = Path(json_file)
    source = CocoFile(path)
    images = source.read_images()
    rows = source.read_rows()
    tree = None
    if hierarchy is not None:
        tree = read_hierarchy(Path(hierarchy), source.class_ids, source.class_names, unlisted, missing)
    present = _check_images(path, images, image_root, on_missing_image, workers)
    num_rows = len(rows.image)
    rows = rows.select(present[rows.image])
    boxes, keep = check_boxes(path, rows, images, on_bad_box)
    rows, boxes = rows.select(keep), boxes[keep]
    rows.image = (np.cumsum(present) - 1)[rows.image].astype(np.int32)
    objects = _find_objects(rows, boxes, len(source.class_ids), tree, merge_iou)
    sources = [{"role": "coco", **describe_file(path)}]
    if hierarchy is not None:
        sources.append({"role": "hierarchy", **describe_file(Path(hierarchy))})
    return write_store(
        output,
        _make_columns(images, present, objects),
        source.class_ids,
        source.class_names,
        parents=None if tree is None else tree.to_parents(),
        image_root=image_root,
        sources=sources,
        options={"merge_iou": merge_iou, "on_bad_box": on_bad_box, "on_missing_image": on_missing_image},
        summary={
            "images": int(np.count_nonzero(present)),
            "images_left_out": int(np.count_nonzero(~present)),
            "objects": len(objects.box),
            "label_rows_left_out": num_rows - len(rows.image),
            "repeated_labels": objects.num_duplicates,
            "labels_merged_into_objects": objects.num_merged,
            "objects_merged_by_iou": objects.num_merged_near,
        },
    )


def _find_objects(
    rows: CocoRows, boxes: np.ndarray, num_classes: int, tree: LabelHierarchy | None, merge_iou: float
) -> Objects:
    """Rows with equal (or nearly equal) boxes of one image as one object."""
    depth = np.zeros(num_classes, dtype=np.int64) if tree is None else tree.depth
    rank = specificity_rank(depth, np.bincount(rows.label, minlength=num_classes))
    objects = group_rows(rows.image, rows.label, boxes, rows.flags, rank)
    return merge_near(objects, merge_iou, rank) if merge_iou < 1 else objects


def _make_columns(images: CocoImages, present: np.ndarray, objects: Objects) -> dict[str, np.ndarray]:
    """The columns of the store, of the images that are present."""
    chosen = np.flatnonzero(present).tolist()
    labels = [images.labels[index] for index in chosen]
    return {
        "image_id": np.array([images.ids[index].encode() for index in chosen], dtype=np.bytes_),
        "file_name": np.array([images.file_names[index].encode() for index in chosen], dtype=np.bytes_),
        "image_size": images.sizes[present],
        "object_offsets": np.searchsorted(objects.image, np.arange(len(chosen) + 1)),
        "box": objects.box,
        "flags": objects.flags,
        "label_offsets": objects.label_offsets,
        "label": objects.label,
        "image_label_offsets": np.cumsum([0, *map(len, labels)]),
        "image_label": np.array([label for one in labels for label in one], dtype=np.int32),
        "image_label_positive": np.array([yes for one in labels for yes in one.values()], dtype=np.uint8),
    }


def read_hierarchy(
    path: Path,
    class_ids: Sequence[str],
    class_names: Sequence[str],
    unlisted: Literal["error", "contract"],
    missing: Literal["error", "root"],
) -> LabelHierarchy:
    """A hierarchy file that names the classes by their ids or by their names.

    It is read by names if more of its labels are names than ids.

    Raises:
        HierarchyError: the file does not fit the classes, or names that it uses are not distinct.
    """
    parsed = read_parents(path)
    labels = set(parsed.parents)
    if len(labels & set(class_names)) > len(labels & set(class_ids)):
        twice = {name for place, name in enumerate(class_names) if name in class_names[:place]}
        if labels & twice:
            raise HierarchyError(
                f"{path}: several categories are called {min(labels & twice)!r}; use category ids instead"
            )
        ids = dict(zip(class_names, class_ids, strict=True))
        # A label that is no name must not be taken for the id that it may happen to equal.
        taken = {label: f"{label} (no category)" for label in labels - set(ids)}
        ids = {**ids, **taken}
        parsed = ParsedHierarchy(
            {ids[label]: [ids[parent] for parent in above] for label, above in parsed.parents.items()},
            root=None if parsed.root is None else ids[parsed.root],
        )
    return LabelHierarchy.from_parsed(parsed, class_ids, unlisted, missing, str(path))


def _check_images(
    path: Path,
    images: CocoImages,
    image_root: str | os.PathLike[str] | None,
    on_missing_image: str,
    workers: int,
) -> np.ndarray:
    """Compares sizes with the image files and fills unknown ones in: (n,) bool, which images to keep."""
    unknown = (images.sizes == 0).any(axis=1)
    if image_root is None:
        if unknown.any():
            name = images.ids[int(np.flatnonzero(unknown)[0])]
            raise DataError(f"{path}: image {name!r} has no height and width: add them, or give the folder")
        return np.ones(len(images.ids), dtype=bool)
    root = Path(image_root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    names: Any = np.array([name.encode() for name in images.file_names], dtype=np.bytes_)
    sizes, unreadable = read_image_sizes(root, names, workers, lambda count: None)
    if unreadable and on_missing_image == "error":
        index, reason = unreadable[0]
        raise DataError(
            f"{root / images.file_names[index]}: cannot read the image ({reason}); {len(unreadable)} "
            "images are absent or unreadable: correct the folder, or let missing images be skipped"
        )
    present = np.ones(len(images.ids), dtype=bool)
    present[[index for index, _ in unreadable]] = False
    differ = present & ~unknown & (sizes != images.sizes).any(axis=1)
    if differ.any():
        index = int(np.flatnonzero(differ)[0])
        (height, width), (real_height, real_width) = images.sizes[index].tolist(), sizes[index].tolist()
        raise DataError(
            f"{path}: image {images.ids[index]!r} is annotated as {width} x {height} pixels (width x "
            f"height), but {root / images.file_names[index]} has {real_width} x {real_height} "
            f"({np.count_nonzero(differ)} such images)"
        )
    images.sizes = np.where(present[:, None], sizes, 1).astype(np.int32)
    return present
