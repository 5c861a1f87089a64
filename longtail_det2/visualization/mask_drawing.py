"""Masks in pictures: reading them in the forms that data sets and results have, filling, outlining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.path import Path as Outline

from longtail_det2.data.masks import check_segmentation, to_bitmap
from longtail_det2.utils.errors import DataError

__all__ = ["check_runs", "fit_mask", "outline", "paint", "read_segmentation"]

_OPACITY = 0.38
"""Share of the class's colour in the pixels of a mask; the object itself has to be seen."""


def read_segmentation(value: Any, height: int, width: int) -> np.ndarray | None:
    """A mask in one of Detectron2's forms as pixels.

    Args:
        value: list of polygons or RLE as `longtail_det2.data.masks.check_segmentation` takes them, (height,
            width) array, or nothing.
        height: of the image.
        width: of the image.

    Returns:
        (height, width) bool; None where there is no mask, or none with area inside the image.

    Raises:
        ValueError: what is wrong, to follow "has a segmentation".
    """
    if isinstance(value, np.ndarray):
        if value.shape != (height, width):
            raise ValueError(f"of the shape {value.shape} in a picture of {(height, width)} (height, width)")
        return value.astype(bool)
    mask = check_segmentation(value, height, width)
    return None if mask is None else to_bitmap(mask, height, width)


def check_runs(value: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of an image's size, with the counts as bytes; `read_segmentation` checks the counts.

    Raises:
        ValueError: what is wrong, to follow "has a segmentation".
    """
    if not isinstance(value, dict):
        raise ValueError("that is not {size: [height, width], counts: compressed RLE}")
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"of the size {size!r} in an image of {[height, width]} (height, width)")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "replace")
    if not isinstance(counts, bytes):
        raise ValueError("whose counts are no compressed RLE")
    return {"size": [height, width], "counts": counts}


def fit_mask(mask: np.ndarray, given: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
    """A mask of a picture at the size that the picture is drawn in.

    Args:
        mask: (H, W) bool.
        given: (H, W) of the picture.
        drawn: (h, w) of the drawing.

    Raises:
        DataError: the mask is not of the picture's size.
    """
    if mask.shape != given:
        raise DataError(
            f"a mask of {mask.shape} pixels (height, width) does not fit a picture of {given}: "
            "masks are wanted in pixels of the picture"
        )
    if given == drawn:
        return mask.astype(bool, copy=False)
    larger = drawn[0] >= given[0]
    # Interpolating gives enlarged masks the smooth edge that the enlarged picture has.
    way = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    return cv2.resize(mask.astype(np.float32), (drawn[1], drawn[0]), interpolation=way) >= 0.5


def paint(
    pixels: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[tuple[float, float, float]]
) -> np.ndarray:
    """Tints the pixels of masks.

    Each pixel is tinted once, by the last mask that covers it: where masks lie on each other, the picture
    stays as visible as under a single one.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        masks: n masks, (h, w) bool.
        colors: n RGB values in [0, 1].

    Returns:
        A new (h, w, 3) uint8 picture.
    """
    owner = np.full(pixels.shape[:2], -1, dtype=np.int32)
    for place, mask in enumerate(masks):
        owner[mask] = place
    tinted = owner >= 0
    tint = 255 * np.array(colors, dtype=np.float32).reshape(-1, 3)[owner[tinted]]
    result = pixels.copy()
    result[tinted] = ((1 - _OPACITY) * pixels[tinted] + _OPACITY * tint).round().astype(np.uint8)
    return result


def outline(mask: np.ndarray) -> Outline | None:
    """The borders of a mask, those of its holes too, through the middles of its outermost pixels.

    Args:
        mask: (h, w) bool.

    Returns:
        A path in pixels; None for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    rings = [np.concatenate([one[:, 0], one[:1, 0]]) + 0.5 for one in contours]
    return Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))
