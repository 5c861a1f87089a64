"""Figures and backgrounds of the shapes data set, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Outline = tuple[tuple[np.ndarray, int], ...]
"""Polygons (n, 2) of x, y and their fill, painted in turn: 255 adds, 0 cuts out."""

_SAMPLES = 4


@dataclass
class Part:
    """A rasterised polygon figure; `cover` is cropped to the image at `window` (rows, columns)."""

    outline: Outline

    cover: np.ndarray
    window: tuple[slice, slice]
    area: float
    centre: tuple[float, float]


def rasterise(outline: Outline, size: int) -> Part:
    """Share of each pixel that the figure covers, cropped to an image of `size` px."""
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
    centre = points.mean(axis=0)
    return Part(
        outline=outline,
        cover=cover[y0 - top : y1 - top, x0 - left : x1 - left],
        window=(slice(y0, y1), slice(x0, x1)),
        area=float(cover.sum()),
        centre=(float(centre[0]), float(centre[1])),
    )


@cache
def unit_outline(name: str) -> Outline:
    """Polygons of a unit figure, painted in turn: 255 adds, 0 cuts out."""
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
            (-1, 0),
            (-0.33, -0.5),
            (0.33, 0.2),
            (1, -0.4),
            (1, -0.1),
            (0.33, 0.5),
            (-0.33, -0.2),
            (-1, 0.3),
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
    """(corners, 2) points on the unit circle."""
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float32: a greyish tint, blotches, and sometimes stripes."""
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
