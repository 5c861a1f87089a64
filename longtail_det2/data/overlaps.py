"""Pairs of overlapping boxes within images, for millions of images.

Boxes of an image are taken from left to right, and each one is compared with its successors until one begins
too far to the right. All images advance at once, so that there are as many array operations as the fullest
image has boxes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_CHUNK = 1 << 17
"""Boxes compared at once: their coordinates fit into a processor's cache."""
_SLACK = 2.0 / 4095
"""Boxes may stand this far from the order by x0, as `openimages_objects` orders them by a rounded x0."""
_ROUNDING = 1e-9
"""The quick tests must not drop a pair whose IoU is exactly the threshold."""


def near_pairs(
    image: np.ndarray, box: np.ndarray, least_iou: float, kind: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of boxes of one image and one kind that overlap by at least `least_iou`.

    Args:
        image: (m,) image of each box, ascending.
        box: (m, 4) (x0, y0, x1, y1). Within an image from left to right is fastest; any order is right.
        least_iou: least intersection over union, in (0, 1].
        kind: (m,) values that a pair must have in common, such as the group-of flag; None for no condition.

    Returns:
        (first, second, iou): (p,) int64 places with first < second, and (p,) float64. Pairs are in no
        particular order.
    """
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for start, stop in _chunks(image):
        part = slice(start, stop)
        first, second, iou = _pairs_of_chunk(
            image[part], box[part].astype(np.float64), least_iou, None if kind is None else kind[part]
        )
        found.append((start + first, start + second, iou))
    first, second, iou = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, iou


def box_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row intersection over union of (r, 4) boxes: (r,) float64; 0 where both boxes are empty."""
    one, other = one.astype(np.float64, copy=False), other.astype(np.float64, copy=False)
    size = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.maximum(size, 0).prod(axis=1)
    union = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _chunks(image: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of about _CHUNK boxes that end where an image ends."""
    start = 0
    while start < len(image):
        stop = min(start + _CHUNK, len(image))
        if stop < len(image):
            cut = int(np.searchsorted(image[start:], image[stop]))
            # An image with more boxes than a chunk stays whole.
            stop = start + (cut or int(np.searchsorted(image[start:], image[stop], side="right")))
        yield start, stop
        start = stop


def _pairs_of_chunk(
    image: np.ndarray, box: np.ndarray, least_iou: float, kind: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `near_pairs`, for float64 boxes of whole images."""
    # One number that ascends over images and, within them, from left to right.
    position = (image - image[0]) * 2.0 + box[:, 0]
    order = None
    if (np.maximum.accumulate(position) - position > _SLACK).any():
        order = np.argsort(position, kind="stable")
        image, box, position = image[order], box[order], position[order]
        kind = None if kind is None else kind[order]
    # IoU <= overlap / width, for the width of either box, and the same for heights.
    reach = position + (1 - least_iou) * (box[:, 2] - box[:, 0]) + _SLACK
    top, bottom = box[:, 1].copy(), box[:, 3].copy()
    needed = least_iou * (bottom - top) - _ROUNDING
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    first, distance = np.arange(len(image)), 0
    while len(first):
        distance += 1
        first = first[: np.searchsorted(first, len(image) - distance)]
        second = first + distance
        first = first[position[second] <= reach[first]]
        second = first + distance
        shared = np.minimum(bottom[first], bottom[second]) - np.maximum(top[first], top[second])
        tall = np.flatnonzero((shared >= needed[first]) & (shared >= needed[second]))
        one, other = first[tall], second[tall]
        iou = box_iou(box[one], box[other])
        hit = (iou >= least_iou) & (image[one] == image[other])
        if kind is not None:
            hit &= kind[one] == kind[other]
        found.append((one[hit], other[hit], iou[hit]))
    first, second, iou = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if order is not None:
        first, second = order[first], order[second]
        first, second = np.minimum(first, second), np.maximum(first, second)
    return first, second, iou
