"""From rows with one label each to objects with several labels.

Open Images repeats a box once per label and has no object ids, so objects are found by their boxes: rows of
one image with equal coordinates and equal group-of flag are one object. (The official metric treats single
and group-of boxes differently, so they stay apart.) Its other flags are united; a label counts once. Labels
of an object are ordered most specific first, objects of an image from left to right. The result does not
depend on the order of the rows.
"""

from dataclasses import dataclass

import numpy as np

from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.ragged import offsets_of

_CHUNK_ROWS = 1 << 17
"""Rows grouped at once, so that the places of their images take up to 17 bits of a sort key."""


@dataclass
class Objects:
    """Objects of all images, by image.

    Attributes:
        image: (m,) int32 image of each object, ascending.
        box: (m, 4) float32 (x0, y0, x1, y1).
        flags: (m,) uint8 bits of `ObjectFlag`.
        label_offsets: (m + 1,) int64.
        label: (l,) class indices, most specific first within an object.
        num_duplicates: rows that repeated a label of their object.
        num_merged: rows that gave an object a further label because of an equal box.
    """

    image: np.ndarray
    box: np.ndarray
    flags: np.ndarray
    label_offsets: np.ndarray
    label: np.ndarray
    num_duplicates: int = 0
    num_merged: int = 0


def specificity_order(depth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Place of each class in the order from the most specific one: (K,) int64.

    Args:
        depth: (K,) depth in the hierarchy; deeper is more specific.
        counts: (K,) rows of each class; of equally deep classes the rarer one is more specific, then the one
            with the lower index.
    """
    place = np.empty(len(depth), dtype=np.int64)
    place[np.lexsort((counts, -np.asarray(depth)))] = np.arange(len(depth))
    return place


def group_rows(
    image: np.ndarray,
    label: np.ndarray,
    box: np.ndarray,
    flags: np.ndarray,
    order_of_class: np.ndarray,
) -> Objects:
    """Join the rows with equal boxes.

    Args:
        image: (r,) int32 image indices in any order.
        label: (r,) class indices.
        box: (r, 4) float32 with coordinates in [0, 1].
        flags: (r,) uint8 bits of `ObjectFlag`.
        order_of_class: (K,) result of `specificity_order`.
    """
    rows = np.argsort(image, kind="stable")
    ordered = image[rows]
    bounds = np.unique(np.searchsorted(ordered, ordered[_CHUNK_ROWS::_CHUNK_ROWS]))  # where images begin
    del ordered
    parts: list[list[np.ndarray]] = [[] for _ in range(5)]
    for chunk in np.split(rows, bounds):
        columns = image[chunk], label[chunk], box[chunk], flags[chunk]
        heads, *others = _group_chunk(*columns, order_of_class)
        for part, values in zip(parts, (columns[0][heads], columns[2][heads], *others), strict=True):
            part.append(values)
    images, boxes, united, labels, num_labels = map(_join, parts)
    boxes += np.float32(0)  # -0 becomes 0
    objects = Objects(images, boxes, united, offsets_of(num_labels), labels)
    objects.num_duplicates = len(rows) - len(labels)
    objects.num_merged = len(labels) - len(images)
    return objects


def _group_chunk(
    image: np.ndarray, label: np.ndarray, box: np.ndarray, flags: np.ndarray, order_of_class: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Group the rows of some images, which ascend.

    Returns:
        One row of each object, its flags, the labels of all objects, and the number of labels of each object.
    """
    bits = (np.ascontiguousarray(box, dtype=np.float32) + np.float32(0)).view(np.uint32)
    # One sort by 64 bits: image (17), x0 (30: numbers in [0, 1] are ordered as their bits), the first ones of
    # y0 (17). Rows of one object have equal keys; the few rows with equal keys are then sorted by everything.
    place = np.cumsum(~np.roll(_equal_to_next(image), 1), dtype=np.uint64) - np.uint64(1)
    key = (place << np.uint64(30) | bits[:, 0]) << np.uint64(17) | bits[:, 1] >> np.uint32(13)
    order = np.argsort(key)
    tied = _equal_to_next(key[order])
    places = np.flatnonzero(tied | np.roll(tied, 1))
    rows = order[places]
    group_of = flags[rows] & np.uint8(ObjectFlag.GROUP_OF)
    keys = (group_of, *bits[rows].T[::-1], image[rows])
    by_object = np.lexsort((order_of_class[label[rows]], *keys))
    order[places] = rows[by_object]
    same = np.ones(len(rows), dtype=bool)
    for key in keys:
        same &= _equal_to_next(key[by_object])
    repeated = same & _equal_to_next(label[rows][by_object])
    begins, keep = np.ones(len(order), dtype=bool), np.ones(len(order), dtype=bool)
    begins[places] = ~np.roll(same, 1)
    keep[places] = ~np.roll(repeated, 1)
    starts = np.flatnonzero(begins)
    num_labels = np.add.reduceat(keep, starts, dtype=np.int32) if len(starts) else starts
    united = np.bitwise_or.reduceat(flags[order], starts) if len(starts) else flags
    return order[starts], united, label[order[keep]], num_labels


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """All parts as one array; the list is emptied."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined


def _equal_to_next(values: np.ndarray) -> np.ndarray:
    """Whether each value equals the one after it; False for the last one."""
    equal = np.zeros(len(values), dtype=bool)
    equal[:-1] = values[1:] == values[:-1]
    return equal
