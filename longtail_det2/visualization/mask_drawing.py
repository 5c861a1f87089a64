"""Masks in images: reading Detectron2's forms of a segmentation, resizing, filling, outlining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.path import Path as Outline

from longtail_det2.data.masks import check_segmentation, to_bitmap
from longtail_det2.utils.errors import DataError

_OPACITY = 0.38
"""Share of the class's colour in the pixels of a mask."""


def read_mask(value: Any, height: int, width: int) -> np.ndarray | None:
    """Read a mask in one of Detectron2's forms as pixels.

    Args:
        value: polygons or RLE as `longtail_det2.data.masks.check_segmentation` takes them, (height, width)
            array, or nothing.
        height: of the image.
        width: of the image.

    Returns:
        (height, width) bool; None where there is no mask, or none with area inside the image.

    Raises:
        ValueError: what is wrong, to follow "has a segmentation".
    """
    if isinstance(value, np.ndarray):
        if value.shape != (height, width):
            raise ValueError(f"of the shape {value.shape} in an image of {(height, width)} (height, width)")
        return value.astype(bool)
    mask = check_segmentation(value, height, width)
    return None if mask is None else to_bitmap(mask, height, width)


def fit_mask(mask: np.ndarray, given: tuple[int, int], drawn: tuple[int, int]) -> np.ndarray:
    """Resize a mask with its image.

    Args:
        mask: (H, W) bool.
        given: (H, W) of the image.
        drawn: (h, w) of the drawing.

    Raises:
        DataError: the mask is not of the image's size.
    """
    if mask.shape != given:
        raise DataError(f"a mask of {mask.shape} pixels (height, width) does not fit an image of {given}")
    if given == drawn:
        return mask.astype(bool, copy=False)
    # Interpolation gives enlarged masks the smooth edge that the enlarged image has.
    method = cv2.INTER_LINEAR if drawn[0] >= given[0] else cv2.INTER_AREA
    return cv2.resize(mask.astype(np.float32), drawn[::-1], interpolation=method) >= 0.5


def paint(
    pixels: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[tuple[float, float, float]]
) -> np.ndarray:
    """Tint the pixels of masks, each once, by the last mask that covers it.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        masks: n masks, (h, w) bool.
        colors: n RGB values in [0, 1].

    Returns:
        A new (h, w, 3) uint8 image.
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
    """Return the borders of a mask (h, w) and of its holes as a path in pixels; None for an empty mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    rings = [np.concatenate([one[:, 0], one[:1, 0]]) + 0.5 for one in contours]
    return Outline.make_compound_path(*(Outline(ring, closed=True) for ring in rings))
