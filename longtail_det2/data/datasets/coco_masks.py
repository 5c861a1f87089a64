"""Masks and areas of a COCO-form file: masks checked one by one, one mask and one area an object."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.coco_json import CocoRows
from longtail_det2.data.datasets.openimages_objects import Objects
from longtail_det2.data.masks import Segmentation, run_lengths

_LEAST_OVERLAP = 0.5


def read_masks(
    rows: CocoRows, objects: Objects, sizes: np.ndarray, rank: np.ndarray, findings: CocoFindings
) -> list[Segmentation | None]:
    """The mask of each object: of its rows that have one, that of the most specific label.

    Args:
        rows: r labels with their annotations' segmentations.
        objects: made of the rows, with `object_of_row`.
        sizes: (n, 2) height and width of the images.
        rank: (K,) rank of each class from the most specific one.
        findings: takes masks that are malformed or empty, and those that do not fit their box.

    Returns:
        m masks, None where there is none.
    """
    masks: list[Segmentation | None] = [None] * len(objects.box)
    has_mask = np.array([bool(mask) and mask != [[]] for mask in rows.segmentation], dtype=bool)
    chosen, owner = leading_rows(rows, objects, rank, has_mask)
    spans = np.full((len(chosen), 4), np.nan)
    image_sizes = sizes[rows.image[chosen]]
    for place, (row, index, (height, width)) in enumerate(
        zip(chosen.tolist(), owner.tolist(), image_sizes.tolist(), strict=True)
    ):
        try:
            masks[index], spans[place] = _read_mask(rows.segmentation[row], height, width)
        except ValueError as error:
            findings.add("bad_mask", f"{rows.annotation[row]} has a segmentation {error}")
        rows.segmentation[row] = None  # nobody else reads it, and it takes much memory
    boxes = np.clip(rows.box[chosen], 0, image_sizes[:, [1, 0, 1, 0]])
    for place in np.flatnonzero(_overlap(spans, boxes) < _LEAST_OVERLAP).tolist():
        row = chosen[place]
        findings.add(
            "mask_beside_box",
            f"{rows.annotation[row]}: the mask spans {_describe(spans[place])}, the box "
            f"{_describe(rows.box[row])} (x0, y0, x1, y1)",
        )
    return masks


def find_areas(rows: CocoRows, objects: Objects, rank: np.ndarray) -> np.ndarray:
    """(m,) annotated area of each object, NaN where there is none; see :func:`leading_rows`."""
    areas = np.full(len(objects.box), np.nan)
    chosen, owner = leading_rows(rows, objects, rank, ~np.isnan(rows.area))
    areas[owner] = rows.area[chosen]
    return areas


def leading_rows(
    rows: CocoRows, objects: Objects, rank: np.ndarray, able: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The row that speaks for each object: of its able ones, that of the most specific label.

    Args:
        rows: r labels.
        objects: made of the rows, with `object_of_row`.
        rank: (K,) rank of each class from the most specific one.
        able: (r,) bool, rows that have what is asked for.

    Returns:
        (rows, their objects), one for each object that has an able row, by object.
    """
    assert objects.object_of_row is not None
    chosen = np.flatnonzero(able)
    chosen = chosen[np.lexsort((chosen, rank[rows.label[chosen]], objects.object_of_row[chosen]))]
    owner = objects.object_of_row[chosen]
    first = np.diff(owner, prepend=-1) != 0
    return chosen[first], owner[first]


def _read_mask(value: object, height: int, width: int) -> tuple[Segmentation, Sequence[float]]:
    """The mask and its bounds (x0, y0, x1, y1).

    Raises:
        ValueError: what is wrong with it, to follow "has a segmentation".
    """
    if isinstance(value, dict):
        return _read_runs(value, height, width)
    if not isinstance(value, list) or not all(isinstance(polygon, (list, array)) for polygon in value):
        raise ValueError("that is neither a list of polygons nor run lengths")
    polygons = [_read_polygon(polygon, height, width) for polygon in value]
    polygons = [polygon for polygon in polygons if _has_area(polygon)]
    if not polygons:
        raise ValueError("without area inside its image")
    corners = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    bounds = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
    return [polygon.reshape(-1) for polygon in polygons], bounds


def _read_polygon(polygon: list[object] | array[float], height: int, width: int) -> np.ndarray:
    """(v, 2) float32 vertices, moved to the image's border where they lie outside."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"with a polygon of {len(polygon)} numbers; three (x, y) pairs are the least")
    try:
        vertices = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("with a polygon of something else than numbers") from None
    if not np.isfinite(vertices).all():
        raise ValueError("with a coordinate that is not finite")
    np.maximum(vertices, 0, out=vertices)
    return np.minimum(vertices, (width, height), out=vertices).astype(np.float32)


def _has_area(vertices: np.ndarray) -> bool:
    """Whether the vertices do not all lie on one line."""
    (x0, y0), (x1, y1), (x2, y2) = vertices[:3].tolist()
    if (x1 - x0) * (y2 - y0) != (x2 - x0) * (y1 - y0):  # nearly always; the rest is slower
        return True
    sides = (vertices - vertices[0]).astype(np.float64)
    longest = sides[np.argmax(np.abs(sides).sum(axis=1))]
    return bool(np.any(sides[:, 0] * longest[1] != sides[:, 1] * longest[0]))


def _read_runs(value: dict[str, object], height: int, width: int) -> tuple[Segmentation, Sequence[float]]:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ValueError(f"of the size {size!r} in an image of {[height, width]} (height, width)")
    if isinstance(counts, str):
        try:
            counts = run_lengths(counts.encode("ascii"))
        except (UnicodeEncodeError, ValueError):
            raise ValueError("whose counts are no run lengths") from None
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("whose counts are neither a text nor a list of integers from 0")
    if sum(counts) != height * width:
        raise ValueError(f"whose run lengths cover {sum(counts)} of {height * width} pixels")
    if not sum(counts[1::2]):
        raise ValueError("without area inside its image")
    whole: Any = {"size": [height, width], "counts": counts}
    runs: Any = coco_mask.frPyObjects(whole, height, width)
    x, y, wide, high = coco_mask.toBbox(runs).tolist()
    return {"size": [height, width], "counts": runs["counts"]}, [x, y, x + wide, y + high]


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (m, 4), pair by pair: (m,), NaN where a box is unknown."""
    lower, upper = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = np.prod(np.maximum(upper - lower, 0), axis=1)
    union = np.prod(one[:, 2:] - one[:, :2], axis=1) + np.prod(other[:, 2:] - other[:, :2], axis=1) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), np.where(np.isnan(union), np.nan, 0))


def _describe(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{edge:g}" for edge in box.tolist()) + "]"
