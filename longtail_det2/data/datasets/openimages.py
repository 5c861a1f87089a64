"""Open Images annotations (V4 to V7, challenge 2019, and anything in their form) to an annotation store.

Open Images repeats a box once per label and has no object ids, so objects are found by their boxes: rows of
one image with equal coordinates and equal group-of flag are one object. (The official metric treats single
and group-of boxes differently, so they stay apart.) Its other flags are united; a label counts once. Labels
of an object are ordered most specific first, objects of an image from left to right. The result does not
depend on the order of the rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.images import find_images, read_image_sizes
from longtail_det2.data.issues import Issues, Kind
from longtail_det2.data.open_images_csv import (
    csv_issues,
    index_images,
    read_boxes,
    read_classes,
    read_image_labels,
)
from longtail_det2.data.store import AnnotationStore, AnnotationStoreWriter, ObjectFlag, open_if_current
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_file
from longtail_det2.utils.ragged import offsets_of

_LOGGER = logging.getLogger(__name__)
_CHUNK_ROWS = 1 << 17
"""Rows grouped at once, so that the places of their images take up to 17 bits of a sort key."""
_RULES = 2  # raise when the same sources and options would give another store
_IMAGE_KINDS = {
    "missing_image": Kind("annotated images without a file", "complete the folder"),
    "unreadable_image": Kind("annotated images that cannot be read", "replace the files"),
}


def prepare_openimages(
    boxes: Sequence[str | Path],
    image_labels: Sequence[str | Path],
    classes: str | Path,
    hierarchy: str | Path | None,
    images: str | Path | None,
    output: str | Path,
    *,
    on_unknown_label: Literal["error", "skip"] = "error",
    skip_bad: bool = False,
    workers: int = 2,
    force: bool = False,
    progress: bool = True,
) -> AnnotationStore:
    """Make an annotation store, or open the one that is there if it is made of the same sources and options.

    The images of the store are those of the rows that are kept, with boxes or with image labels alone, by id.
    What was kept, joined and left out is counted in `store.header["summary"]`.

    Args:
        boxes: box CSVs; columns ImageID, LabelName, XMin, XMax, YMin, YMax by name, flags if there are any.
        image_labels: image-label CSVs; columns ImageID, LabelName, Confidence.
        classes: class descriptions, LabelName,DisplayName without header; its order is the class order.
        hierarchy: hierarchy JSON; nodes that are no classes are left out, children move up. None: flat.
        images: folder with the images at any depth. None: files are called "<id>.jpg" and have no sizes,
            which serves statistics and evaluation, but not training.
        output: directory of the store.
        on_unknown_label: what to do about labels that are not among the classes.
        skip_bad: leave out, instead of refusing: bad boxes (outside [0, 1] by more than 1e-6, inverted or not
            finite), machine labels, and images that are missing or cannot be read.
        workers: processes that read image headers.
        force: build even if the store is up to date.
        progress: show a progress bar.

    Raises:
        DataError: anything that is wrong with the files, with file and line.
    """
    options = {
        "rules": _RULES,
        "images": None if images is None else os.path.abspath(images),
        "on_unknown_label": on_unknown_label,
        "skip_bad": skip_bad,
    }
    files = [("boxes", path) for path in boxes] + [("image_labels", path) for path in image_labels]
    files += [("classes", classes), ("hierarchy", hierarchy)]
    files = [(role, Path(path)) for role, path in files if path is not None]
    for role, path in files:
        if not path.is_file():
            raise DataError(f"{path}: no such file ({role})")
    store = None if force else open_if_current(output, files, options)
    # Images that were absent may have come meanwhile.
    if store is not None and not any(store.header["summary"].get(kind) for kind in _IMAGE_KINDS):
        _LOGGER.info("%s is up to date: same sources and options", output)
        return store
    # Before they are read: a file that changes meanwhile then counts as changed.
    sources = [{"role": role, **describe_file(path)} for role, path in files]
    issues = csv_issues(on_unknown_label, skip_bad, **_IMAGE_KINDS)
    with AnnotationStoreWriter(output) as writer:
        class_ids, class_names = read_classes(classes)
        tree = LabelHierarchy.flat(class_ids)
        if hierarchy is not None:
            tree = LabelHierarchy.from_json(hierarchy, class_ids, unlisted="contract")
        of_box, label, box, flags = read_boxes(boxes, class_ids, issues)
        of_image_label, image_label, present = read_image_labels(image_labels, class_ids, issues)
        issues.raise_errors()
        ids, (of_box, of_image_label) = index_images(of_box, of_image_label)
        names, sizes = _find_images(ids, images, issues, workers, progress)
        issues.raise_errors()
        pa.default_memory_pool().release_unused()  # some hundred megabytes after a gigabyte of CSV
        kept = names != b""
        place = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        num_images = int(np.count_nonzero(kept))
        for name, column in (("image_id", ids), ("file_name", names), ("image_size", sizes)):
            writer.add(name, column if kept.all() else column[kept])
        label_rows = _keep(place[of_image_label], image_label, present)
        summary = _write_image_labels(writer, label_rows, num_images, len(class_ids))
        summary |= _write_objects(writer, _keep(place[of_box], label, box, flags), num_images, tree)
        writer.finish(
            class_ids,
            class_names,
            form="open_images",
            parents=None if hierarchy is None else tree.to_parents(),
            image_root=images,
            sources=sources,
            options=options,
            summary=summary | issues.counts(),
        )
    if issues.found:
        _LOGGER.warning("%s", issues.table())
    return AnnotationStore(output)


def _find_images(
    ids: np.ndarray, images: str | Path | None, issues: Issues, workers: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """File name of each image, empty for those to leave out, and (height, width), 0 where unknown."""
    sizes = np.zeros((len(ids), 2), np.int32)
    if images is None:
        return np.char.add(ids, b".jpg"), sizes
    names = find_images(Path(images), ids)
    missing, found = np.flatnonzero(names == b""), np.flatnonzero(names != b"")
    if len(missing):
        name = bytes(ids[missing[0]]).decode()
        issues.add("missing_image", f"image {name} is not below {images}", len(missing))
    sizes[found], problems = read_image_sizes(Path(images), names[found], workers, progress)
    if problems:
        wrong = found[[index for index, _ in problems]]
        name = bytes(ids[wrong[0]]).decode()
        issues.add("unreadable_image", f"image {name} cannot be read ({problems[0][1]})", len(wrong))
        names[wrong] = b""
    return names, sizes


def _keep(image: np.ndarray, *columns: np.ndarray) -> tuple[Any, ...]:
    """The rows of images that are kept, whose index is not -1."""
    keep = image >= 0
    return (image, *columns) if keep.all() else (image[keep], *(column[keep] for column in columns))


def _write_objects(
    writer: AnnotationStoreWriter, rows: tuple[Any, ...], num_images: int, tree: LabelHierarchy
) -> dict[str, int]:
    """Write the objects of the rows (image, label, box, flags); returns counts for the summary."""
    image, label, box, flags = rows
    objects = group_rows(image, label, box, flags, tree.specificity_order(label))
    per_image = np.bincount(objects.image, minlength=num_images)
    writer.add("object_offsets", offsets_of(per_image))
    for name in ("box", "flags", "label_offsets", "label"):
        writer.add(name, getattr(objects, name))
    empty = (objects.box[:, 2:] <= objects.box[:, :2]).any(axis=1)
    return {
        "images": num_images,
        "images_without_objects": int(np.count_nonzero(per_image == 0)),
        "box_rows": len(image),
        "objects": len(objects.image),
        "objects_with_several_labels": int(np.count_nonzero(np.diff(objects.label_offsets) > 1)),
        "labels": len(objects.label),
        "rows_merged_equal_box": len(objects.label) - len(objects.image),
        "duplicate_rows": len(image) - len(objects.label),
        "empty_boxes": int(np.count_nonzero(empty)),
    }


def _write_image_labels(
    writer: AnnotationStoreWriter, rows: tuple[Any, ...], num_images: int, num_classes: int
) -> dict[str, int]:
    """Write each (image, label, verdict) once; the metric knows images with both verdicts on a label."""
    image, label, present = rows
    keys = np.unique((image.astype(np.int64) * num_classes + label) * 2 + present)
    pairs = keys >> 1
    writer.add("image_label", pairs % num_classes)
    writer.add("image_label_status", keys & 1)
    writer.add("image_label_offsets", offsets_of(np.bincount(pairs // num_classes, minlength=num_images)))
    contradictory = int(np.count_nonzero(pairs[1:] == pairs[:-1]))
    return {"image_labels": len(keys), "contradictory_image_labels": contradictory}


class Objects(NamedTuple):
    """Objects of all images, by image."""

    image: np.ndarray  # (m,) int32, ascending
    box: np.ndarray  # (m, 4) float32 (x0, y0, x1, y1)
    flags: np.ndarray  # (m,) uint8 bits of `ObjectFlag`
    label_offsets: np.ndarray  # (m + 1,) int64
    label: np.ndarray  # (l,) class indices, most specific first within an object


def group_rows(
    image: np.ndarray, label: np.ndarray, box: np.ndarray, flags: np.ndarray, order_of_class: np.ndarray
) -> Objects:
    """Join the rows with equal boxes.

    Rows are in any order: (r,) int32 image indices, (r,) class indices, (r, 4) float32 with coordinates in
    [0, 1], (r,) uint8 bits of `ObjectFlag`. `order_of_class` is what
    `LabelHierarchy.specificity_order` gives.
    """
    rows = np.argsort(image, kind="stable")
    ordered = image[rows]
    bounds = np.unique(np.searchsorted(ordered, ordered[_CHUNK_ROWS::_CHUNK_ROWS]))  # where images begin
    chunks = np.split(rows, bounds)
    del ordered
    parts = (_group_chunk(image[one], label[one], box[one], flags[one], order_of_class) for one in chunks)
    columns = list(zip(*parts, strict=True))
    # Each column's parts go when it is joined: all of them twice would be the peak of the memory.
    images, boxes, united, labels, num_labels = (np.concatenate(columns.pop(0)) for _ in range(5))
    boxes += np.float32(0)  # -0 becomes 0
    return Objects(images, boxes, united, offsets_of(num_labels), labels)


def _group_chunk(
    image: np.ndarray, label: np.ndarray, box: np.ndarray, flags: np.ndarray, order_of_class: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Group rows of some images, which ascend: image, box, flags of each object; labels; their numbers."""
    bits = (np.ascontiguousarray(box, dtype=np.float32) + np.float32(0)).view(np.uint32)
    # One sort by 64 bits: image (17), x0 (30: numbers in [0, 1] are ordered as their bits), the first ones of
    # y0 (17). Rows of one object have equal keys; the few rows with equal keys are then sorted by everything.
    place = np.cumsum(_differs(image), dtype=np.uint64) - np.uint64(1)
    key = (place << np.uint64(30) | bits[:, 0]) << np.uint64(17) | bits[:, 1] >> np.uint32(13)
    order = np.argsort(key)
    alone = _differs(key[order])
    alone &= np.roll(alone, -1)
    places = np.flatnonzero(~alone)
    rows = order[places]
    group_of = flags[rows] & np.uint8(ObjectFlag.GROUP_OF)
    keys = (group_of, *bits[rows].T[::-1], image[rows])
    by_object = np.lexsort((order_of_class[label[rows]], *keys))
    order[places] = rows[by_object]
    is_first, is_kept = np.ones((2, len(order)), dtype=bool)
    is_first[places] = np.logical_or.reduce([_differs(key[by_object]) for key in keys])
    is_kept[places] = is_first[places] | _differs(label[rows][by_object])
    starts = np.flatnonzero(is_first)
    num_labels = np.add.reduceat(is_kept, starts, dtype=np.int32) if len(starts) else starts
    united = np.bitwise_or.reduceat(flags[order], starts) if len(starts) else flags
    heads = order[starts]
    return image[heads], box[heads], united, label[order[is_kept]], num_labels


def _differs(values: np.ndarray) -> np.ndarray:
    """Whether each value differs from the one before it; True for the first one."""
    return np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]])
