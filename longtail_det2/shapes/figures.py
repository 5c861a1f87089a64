"""Figures, backgrounds and masks of the generated data set, as arrays.

Polygons of masks follow the pixel edges, so that rasterising them by COCO's rules gives the mask back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

Outline = tuple[tuple[np.ndarray, int], ...]
"""Polygons (n, 2) of x, y and their fill, painted in turn: 255 adds, 0 cuts out."""

_SAMPLES = 4


@dataclass(frozen=True)
class Part:
    """A rasterised polygon figure."""

    cover: np.ndarray  # share of each pixel, cropped to the image at `window`
    window: tuple[slice, slice]  # rows, columns
    area: float  # whole, px
    centre: tuple[float, float]  # (x, y)


def rasterise(outline: Outline, size: int) -> Part:
    """Compute the share of each pixel that the figure covers, cropped to an image of `size` px."""
    points = np.concatenate([one for one, _ in outline])
    low = np.floor(points.min(axis=0)).astype(int) - 1
    width, height = (np.ceil(points.max(axis=0)).astype(int) + 1 - low).tolist()
    sheet = Image.new("L", (width * _SAMPLES, height * _SAMPLES))
    draw = ImageDraw.Draw(sheet)
    for one, fill in outline:
        draw.polygon([(x, y) for x, y in ((one - low) * _SAMPLES - 0.5).tolist()], fill=fill)
    cover = np.asarray(sheet.reduce(_SAMPLES), dtype=np.float32) / 255
    left, top = low.tolist()
    x0, y0 = (min(max(edge, 0), size) for edge in (left, top))
    x1, y1 = (min(max(edge, 0), size) for edge in (left + width, top + height))
    centre = points.mean(axis=0).tolist()
    inside = cover[y0 - top : y1 - top, x0 - left : x1 - left]
    return Part(inside, (slice(y0, y1), slice(x0, x1)), float(cover.sum()), (centre[0], centre[1]))


@cache
def unit_outline(name: str) -> Outline:
    """Return the polygons of a unit figure."""
    if name in ("circle", "ring"):
        disc = _regular(48)
        return ((disc, 255),) if name == "circle" else ((disc, 255), (disc * 0.55, 0))
    if name == "crescent":
        return ((_regular(48), 255), (_regular(48) * 0.85 + (0.45, 0.0), 0))
    if name == "star":
        radii = np.where(np.arange(10) % 2 == 0, 1.12, 0.48)[:, None]
        return ((_regular(10) * radii, 255),)
    corners = {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "bar": [(-1, -0.09), (1, -0.09), (1, 0.09), (-1, 0.09)],
        "ell": [(-0.6, -0.9), (-0.3, -0.9), (-0.3, 0.6), (0.6, 0.6), (0.6, 0.9), (-0.6, 0.9)],
        "zigzag": [
            *[(-1, 0), (-0.33, -0.5), (0.33, 0.2), (1, -0.4)],
            *[(1, -0.1), (0.33, 0.5), (-0.33, -0.2), (-1, 0.3)],
        ],
    }
    if name == "triangle":
        return ((_regular(3) * 1.1, 255),)
    if name == "cross":
        a, b = 0.34, 1.0
        arm = [(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b)]
        corners["cross"] = arm + [(-x, -y) for x, y in arm]
    return ((np.array(corners[name]), 255),)


def _regular(corners: int) -> np.ndarray:
    """Return (corners, 2) points on the unit circle."""
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a (size, size, 3) float32 background: a greyish tint, blotches, and sometimes stripes."""
    cells = int(rng.integers(3, 10))
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    blotches = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    level = rng.uniform(60, 160) + blotches * rng.uniform(6, 22)
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.2) * size
        steps = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
        phase = steps[None, :] * np.float32(np.cos(angle)) + steps[:, None] * np.float32(np.sin(angle))
        level = level + rng.uniform(3, 12) * np.sin(phase)
    tint = 1 + rng.uniform(-0.1, 0.1, size=3)
    return np.clip(level[..., None] * tint, 20, 190).astype(np.float32)


def box_of(parts: list[Part]) -> np.ndarray:
    """Compute the box around the windows of some figures, (4,) XYXY."""
    corners = np.array([[w[1].start, w[0].start, w[1].stop, w[0].stop] for w in (p.window for p in parts)])
    return np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])


@dataclass(frozen=True)
class VisibleRegion:
    """The visible pixels of an object."""

    box: tuple[int, int, int, int]  # tight, XYXY in px, the last two exclusive
    area: int  # px
    polygons: list[list[int]]  # flat lists x0, y0, x1, y1, ...; their union is the mask
    rle: dict[str, Any]  # COCO's compressed RLE of the whole image


def measure_region(mask: np.ndarray) -> VisibleRegion | None:
    """Describe a (H, W) bool mask; None where it is empty."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))  # pyright: ignore
    rle = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return VisibleRegion(box, int(mask.sum()), mask_to_polygons(mask), rle)


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Return polygons along the pixel edges of a (H, W) bool mask, cut until none has a hole."""
    fine = mask.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour, parent in zip(contours, tree[0, :, 3] if contours else (), strict=True):
        if parent >= 0:
            first, last = contour[..., 0].min() + 1, contour[..., 0].max() - 1
            left = np.arange(mask.shape[1]) < (first // 2 + last // 2 + 1) // 2
            return mask_to_polygons(mask & left) + mask_to_polygons(mask & ~left)
    # Pixel x is the columns 2x and 2x + 1, so these lie on its edges x and x + 1.
    corners = [(contour[:, 0] + 1) // 2 for contour in contours]
    return [one[np.any(one != np.roll(one, 1, axis=0), axis=1)].ravel().tolist() for one in corners]
