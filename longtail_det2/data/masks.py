"""Masks of objects: Detectron2's `segmentation` values, and the columns of a store that hold them.

A segmentation is a list of polygons, each a flat array (x0, y0, x1, y1, ...) in pixels, or COCO's compressed
RLE, {"size": [height, width], "counts": bytes}. Polygons of an object are united.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pycocotools.mask as coco_mask

from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.ragged import offsets_of

Segmentation: TypeAlias = list[np.ndarray] | dict[str, Any]
"""Polygons or RLE, see the module's docstring."""


def encode_masks(masks: Sequence[Segmentation | None]) -> dict[str, np.ndarray]:
    """The store's columns of the masks of m objects, None where an object has none."""
    polygons = [polygon for mask in masks if isinstance(mask, list) for polygon in mask]
    runs = [mask["counts"] if isinstance(mask, dict) else b"" for mask in masks]
    vertices = [np.asarray(polygon, dtype=np.float32).reshape(-1, 2) for polygon in polygons]
    return {
        "polygon_offsets": _offsets(len(mask) if isinstance(mask, list) else 0 for mask in masks),
        "vertex_offsets": _offsets(map(len, vertices)),
        "vertex": np.concatenate([np.zeros((0, 2), dtype=np.float32), *vertices]),
        "run_offsets": _offsets(map(len, runs)),
        "run": np.frombuffer(b"".join(runs), dtype=np.uint8),
    }


def decode_masks(store: AnnotationStore, image: int) -> list[Segmentation | None]:
    """The masks of the objects of one image.

    Returns:
        One segmentation per object, None where it has no mask. Polygons are views of the store.

    Raises:
        DataError: the columns are damaged.
    """
    columns = store.columns_at(image)
    vertices, runs = columns["vertex"], columns["run"]
    first, last = columns["object_offsets"][image : image + 2].tolist()
    polygon_ends = columns["polygon_offsets"][first : last + 1].tolist()
    run_ends = columns["run_offsets"][first : last + 1].tolist()
    base = polygon_ends[0]
    vertex_ends = columns["vertex_offsets"][base : polygon_ends[-1] + 1].tolist()
    masks: list[Segmentation | None] = []
    for place in range(last - first):
        parts = range(polygon_ends[place] - base, polygon_ends[place + 1] - base)
        counts = runs[run_ends[place] : run_ends[place + 1]].tobytes()
        if parts:
            masks.append([vertices[vertex_ends[k] : vertex_ends[k + 1]].reshape(-1) for k in parts])
        elif counts:
            if counts[-1] >= ord("P"):  # says that another byte follows: pycocotools would read on, and crash
                raise DataError(f"{store.path / 'run.npy'} is damaged: an RLE has no end; prepare it again")
            masks.append({"size": columns["image_size"][image].tolist(), "counts": counts})
        else:
            masks.append(None)
    return masks


def to_rle(mask: Segmentation, height: int, width: int) -> dict[str, Any]:
    """A mask of an image of this size as compressed RLE, by COCO's rules; all vertices must lie inside."""
    if isinstance(mask, dict):
        return mask
    polygons = [_as_written(polygon).tolist() for polygon in mask]
    merged: Any = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return merged


def to_bitmap(mask: Segmentation, height: int, width: int) -> np.ndarray:
    """A mask as (height, width) bool, by COCO's rules; see `to_rle`.

    Raises:
        DataError: RLE that is not that of an image of this size.
    """
    try:
        counts = rle_counts(to_rle(mask, height, width)["counts"])
    except ValueError:
        counts = []
    if sum(counts) != height * width or min(counts) < 0:
        raise DataError(f"the RLE of a mask does not fill the image of {width} x {height} pixels")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def _as_written(polygon: np.ndarray) -> np.ndarray:
    """Coordinates in double precision as an annotation file has them, if that has two decimals at most.

    A store keeps single precision. COCO's rules draw edges in steps of a fifth of a pixel, so that 12.1 and
    the nearest number of single precision are not always the same pixels.
    """
    exact = np.asarray(polygon, dtype=np.float64)
    rounded = exact.round(2)
    return np.where(rounded.astype(np.float32) == exact, rounded, exact)


def rle_counts(text: bytes) -> list[int]:
    """The counts that COCO's compressed RLE stands for: lengths of runs, the first one of background.

    Each number is written in groups of five bits, the lowest first, a sixth bit saying whether another group
    follows; from the fourth number on it is the difference to the number two places before. (pycocotools
    gives no counts, does not tell when they do not fill the image, and corrupts memory on other texts.)

    Raises:
        ValueError: a byte outside the alphabet, or the last number has no end.
    """
    numbers: list[int] = []
    value = shift = 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64 or shift > 30:
            raise ValueError("not compressed RLE")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed RLE ends in the middle of a number")
    return numbers


def check_segmentation(value: object, height: int, width: int) -> Segmentation | None:
    """A checked mask; None where there is none, or none with area inside the image.

    It is a list of polygons, RLE with counts as text, bytes or list, or nothing. Vertices outside the image
    are moved to its border.

    Raises:
        ValueError: what is wrong with it, to follow "has a segmentation".
    """
    if not value:
        return None
    if isinstance(value, dict):
        return _read_rle(value, height, width)
    forms = (list, tuple, array, np.ndarray)
    if not isinstance(value, (list, tuple)) or not all(isinstance(polygon, forms) for polygon in value):
        raise ValueError("that is neither a list of polygons nor RLE")
    if not any(len(polygon) for polygon in value):
        return None
    polygons = [_read_polygon(polygon, height, width) for polygon in value]
    return [polygon.reshape(-1) for polygon in polygons if _has_area(polygon)] or None


def _read_polygon(polygon: Sequence[object], height: int, width: int) -> np.ndarray:
    """(v, 2) float32 vertices, moved to the image's border where they lie outside."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"with a polygon of {len(polygon)} numbers; three (x, y) pairs are the least")
    try:
        vertices = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("with a polygon of something else than numbers") from None
    if not np.isfinite(vertices).all():
        raise ValueError("with a coordinate that is not finite")
    np.maximum(vertices, 0, out=vertices)  # faster than np.clip
    return np.minimum(vertices, (width, height), out=vertices).astype(np.float32)


def _has_area(vertices: np.ndarray) -> bool:
    """Whether the vertices do not all lie on one line."""
    (x0, y0), (x1, y1), (x2, y2) = vertices[:3].tolist()
    if (x1 - x0) * (y2 - y0) != (x2 - x0) * (y1 - y0):  # nearly always; the rest is slower
        return True
    sides = (vertices - vertices[0]).astype(np.float64)
    longest = sides[np.argmax(np.abs(sides).sum(axis=1))]
    return bool(np.any(sides[:, 0] * longest[1] != sides[:, 1] * longest[0]))


def _read_rle(value: Mapping[str, object], height: int, width: int) -> Segmentation | None:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"of the size {size!r} in an image of {[height, width]} (height, width)")
    if isinstance(counts, (str, bytes)):
        try:
            counts = rle_counts(counts.encode() if isinstance(counts, str) else counts)
        except ValueError:
            raise ValueError("whose counts are no compressed RLE") from None
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("whose counts are neither a text nor a list of integers from 0")
    if sum(counts) != height * width:
        raise ValueError(f"whose counts cover {sum(counts)} of {height * width} pixels")
    if not sum(counts[1::2]):
        return None
    rle: Any = {"size": [height, width], "counts": counts}
    return {**rle, "counts": coco_mask.frPyObjects(rle, height, width)["counts"]}  # pyright: ignore


def _offsets(counts: Iterable[int]) -> np.ndarray:
    return offsets_of(np.fromiter(counts, dtype=np.int64))
