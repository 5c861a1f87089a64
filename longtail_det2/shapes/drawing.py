"""Draw one image of the generated data set and measure what is visible of each object.

Shapes are polygons, rasterised by Pillow with 4 x 4 samples per pixel. Later objects cover earlier ones; the
visible share of each pixel is carried along per object, so that masks and boxes are measured. Polygons of
masks follow the pixel edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from .plan import SPLITS, PlannedImage, PlannedObject
from .vocabulary import COLOURS, ShapesVocabulary

Outline = tuple[tuple[np.ndarray, int], ...]
"""Polygons (n, 2) of x, y and their fill, painted in turn: 255 adds, 0 cuts out."""
OBJECT_SIZE = (0.125, 0.34)
"""Smallest and largest object as a fraction of the image side: 16 to 44 px of 128."""
MIN_VISIBLE = (0.55, 0.75)
"""Visible fraction that an object of one or of two colours keeps (unless an image is hopelessly full)."""
_ATTEMPTS, _FULL_ATTEMPTS, _PICKY_ATTEMPTS = 60, 25, 40
_DISTRACTORS = ("bar", "ell", "zigzag", "crescent")
_SAMPLES = 4


@dataclass(frozen=True)
class Part:
    """A rasterised polygon figure."""

    cover: np.ndarray  # share of each pixel, cropped to the image at `window`
    window: tuple[slice, slice]  # rows, columns
    area: float  # whole, px
    centre: tuple[float, float]  # (x, y)


@dataclass(frozen=True)
class VisibleRegion:
    """The visible pixels of an object."""

    box: tuple[int, int, int, int]  # tight, XYXY in px, the last two exclusive
    area: int  # px
    polygons: list[list[int]]  # flat lists x0, y0, x1, y1, ...; their union is the mask
    rle: dict[str, Any]  # COCO's compressed RLE of the whole image


@dataclass(frozen=True)
class DrawnObject:
    """What is visible of a planned object."""

    region: VisibleRegion
    members: tuple[VisibleRegion, ...] = ()  # those of a group that are at least 90 % visible


@dataclass
class _Placed:
    layers: range  # of its parts on the canvas
    part_areas: list[float]  # whole, px
    box: np.ndarray  # before occlusion, XYXY
    area: float  # whole, px
    needed: float  # fraction of `area` that must stay visible


def draw_image(
    planned: PlannedImage, vocabulary: ShapesVocabulary, size: int, seed: int, split: str, index: int
) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draw image `index` of a split, (size, size, 3) uint8 RGB; depends on nothing but the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), 2, index])
    canvas = _Canvas(background(size, rng), rng)
    # Groups need room, so they come first; others lie in front of them.
    order = sorted(range(len(planned.objects)), key=lambda k: not planned.objects[k].group)
    placed = {k: canvas.place(planned.objects[k], vocabulary) for k in order}
    if rng.random() < 0.2:
        canvas.add_occluder(list(placed.values()))
    drawn = [canvas.measure(placed[k], planned.objects[k].group) for k in range(len(planned.objects))]
    noise = rng.standard_normal(canvas.pixels.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return np.clip(canvas.pixels + noise + 0.5, 0, 255).astype(np.uint8), drawn


class _Canvas:
    """Pixels (size, size, 3) float32 and, for each figure so far, its visible share of each pixel."""

    def __init__(self, pixels: np.ndarray, rng: np.random.Generator) -> None:
        self.pixels, self.size, self.rng = pixels, len(pixels), rng
        self.layers: list[np.ndarray] = []
        self.placed: list[_Placed] = []
        for _ in range(int(rng.integers(0, 4))):  # grey figures outside all classes
            kind, radius = str(rng.choice(_DISTRACTORS)), rng.uniform(0.1, 0.3) * self.size
            part = self._figure(kind, rng.uniform(0, self.size, size=2), radius)
            self._blend_grey(part)

    def place(self, planned: PlannedObject, vocabulary: ShapesVocabulary) -> _Placed:
        """Paint an object where there is room for it, else shrunk, else where it hides least."""
        shape = vocabulary.leaves[planned.leaves[0]][0]
        needed = MIN_VISIBLE[len(planned.leaves) - 1]
        strict = self.rng.random() < 0.8
        # Both colours must be seen, so two-coloured objects stay within the image.
        may_leave = len(planned.leaves) == 1 and self.rng.random() < 0.12
        best: tuple[float, list[Part]] | None = None
        for attempt in range(_ATTEMPTS):
            parts = self._propose(shape, planned.group, may_leave, 0.97 ** max(attempt - _FULL_ATTEMPTS, 0))
            limit = 0.02 if strict and attempt < _FULL_ATTEMPTS else 0.25
            fits = self._box_overlap(box_of(parts)) <= limit
            if not fits and attempt < _PICKY_ATTEMPTS:
                continue
            seen = self._least_seen(parts, needed)
            if best is None or seen > best[0] or (fits and seen >= 1):
                best = (seen, parts)
            if fits and seen >= 1:
                break
        assert best is not None
        return self._paint(best[1], [vocabulary.leaves[leaf][1] for leaf in planned.leaves], needed)

    def _propose(self, shape: str, group: bool, may_leave: bool, shrink: float) -> list[Part]:
        if group:
            return self._propose_group(shape, self.rng.uniform(0.062, 0.072) * self.size * max(shrink, 0.75))
        low, high = (side * self.size / 2 for side in OBJECT_SIZE)
        radius = max(float(np.exp(self.rng.uniform(np.log(low), np.log(high)))) * shrink, low)
        margin = -0.45 * radius if may_leave else 1.02 * radius
        centre = self.rng.uniform(margin, self.size - margin, size=2)
        return [self._figure(shape, centre, radius)]

    def _propose_group(self, shape: str, radius: float) -> list[Part]:
        """Propose six to nine touching figures on a jittered triangular grid, wholly inside the image."""
        number = int(self.rng.integers(6, 10))
        step = 2 * radius * (0.88 if shape in ("circle", "square", "ring") else 0.76)
        rows, columns = np.meshgrid(np.arange(-3, 4), np.arange(-3, 4), indexing="ij")
        grid = np.stack([columns + 0.5 * (rows % 2), rows * 0.866], axis=-1).reshape(-1, 2)
        around = self.rng.uniform(-0.5, 0.5, size=2)
        grid = grid[np.argsort(np.linalg.norm(grid - around, axis=1), kind="stable")[:number]]
        centres = grid * step + self.rng.uniform(-0.08, 0.08, size=grid.shape) * step
        low = radius * 1.3 - centres.min(axis=0)
        high = self.size - radius * 1.3 - centres.max(axis=0)
        centres = self.rng.permutation(centres + self.rng.uniform(low, np.maximum(high, low)))
        return [self._figure(shape, centre, radius * self.rng.uniform(0.92, 1.08)) for centre in centres]

    def _figure(self, shape: str, centre: np.ndarray, radius: float) -> Part:
        """Rasterise a rotated, slightly stretched figure of circumradius about `radius` px at (x, y)."""
        angle, stretch = self.rng.uniform(0, 2 * np.pi), np.sqrt(self.rng.uniform(0.85, 1.18))
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = radius * np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])
        outline = tuple((points @ matrix.T + centre, fill) for points, fill in FIGURES[shape])
        return rasterise(outline, self.size)

    def _box_overlap(self, box: np.ndarray) -> float:
        """Compute the greatest intersection of `box` with an earlier box, over the smaller of both areas."""
        if not self.placed:
            return 0.0
        others = np.stack([placed.box for placed in self.placed])
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
        shared = np.prod(np.maximum(sides, 0), axis=1)
        return float((shared / np.minimum(areas, np.prod(box[2:] - box[:2]))).max())

    def _least_seen(self, parts: list[Part], needed: float = 0.0) -> float:
        """Compute the smallest ratio of visible to needed fraction if `parts` were painted (as an object)."""
        ratios = [np.inf]
        if needed > 0:
            inside = sum(float(part.cover.sum()) for part in parts)
            ratios.append(inside / sum(part.area for part in parts) / needed)
        for placed in self.placed:
            seen = 0.0
            for layer in placed.layers:
                share = self.layers[layer].copy()
                for part in parts:
                    share[part.window] *= 1 - part.cover
                seen += float(share.sum())
            ratios.append(seen / (placed.area * placed.needed))
        return min(ratios)

    def _paint(self, parts: list[Part], colours: list[str], needed: float) -> _Placed:
        tones = [np.array(COLOURS[name]) + self.rng.normal(0, 5, 3).clip(-10, 10) for name in colours]
        layers = range(len(self.layers), len(self.layers) + len(parts))
        for part in parts:
            self._cover(part)
            share = np.zeros((self.size, self.size), dtype=np.float32)
            share[part.window] = part.cover
            self.layers.append(share)
            # Members of a group differ in brightness, or they would run into one blot.
            light = self.rng.uniform(0.8, 1.08) if len(parts) > 1 else 1.0
            self._blend(part, [tone * light for tone in tones])
        inside = float(sum(self.layers[layer].sum() for layer in layers))
        # Parts of a group hide one another: its whole area is that of their union.
        area = parts[0].area if len(parts) == 1 else inside
        placed = _Placed(layers, [part.area for part in parts], box_of(parts), area, needed)
        self.placed.append(placed)
        return placed

    def _cover(self, part: Part) -> None:
        for share in self.layers:
            share[part.window] *= 1 - part.cover

    def _blend(self, part: Part, tones: list[np.ndarray]) -> None:
        """Paint a figure: a light gradient, and two halves where there are two tones."""
        rows, columns = (np.arange(side.start, side.stop, dtype=np.float32) + 0.5 for side in part.window)
        x, y = columns[None, :] - part.centre[0], rows[:, None] - part.centre[1]
        light, cut = self.rng.uniform(0, 2 * np.pi, size=2)
        slope = np.float32(self.rng.uniform(0.04, 0.14) / (max(len(rows), len(columns), 1) / 2))
        gradient = 1 + slope * (x * np.float32(np.cos(light)) + y * np.float32(np.sin(light)))
        tone = tones[0].astype(np.float32)[None, None]
        if len(tones) == 2:
            side = np.clip(x * np.float32(np.cos(cut)) + y * np.float32(np.sin(cut)) + 0.5, 0, 1)[..., None]
            tone = tone * (1 - side) + tones[1].astype(np.float32) * side
        region = self.pixels[part.window]
        region += part.cover[..., None] * (tone * gradient[..., None] - region)

    def _blend_grey(self, part: Part) -> None:
        self._blend(part, [self.rng.uniform(25, 160) + self.rng.uniform(-8, 8, size=3)])

    def add_occluder(self, placed: list[_Placed]) -> None:
        """Lay a thin grey bar across one object, unless that would hide too much of any."""
        target = placed[int(self.rng.integers(len(placed)))]
        middle = (target.box[:2] + target.box[2:]) / 2
        part = self._figure("bar", middle, self.rng.uniform(0.12, 0.3) * self.size)
        if self._least_seen([part]) >= 1:
            self._cover(part)
            self._blend_grey(part)

    def measure(self, placed: _Placed, group: bool) -> DrawnObject:
        """Measure the region of a placed object once everything is painted."""
        share = np.sum([self.layers[layer] for layer in placed.layers], axis=0)
        members = tuple(
            measure_region(self.layers[layer] >= 0.5)
            for layer, area in zip(placed.layers, placed.part_areas, strict=True)
            if group and float(self.layers[layer].sum()) >= 0.9 * area
        )
        return DrawnObject(measure_region(share >= 0.5), members)


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


def _regular(corners: int) -> np.ndarray:
    """Return (corners, 2) points on the unit circle."""
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_SQUARE = np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
_BAR = np.array([(-1, -0.09), (1, -0.09), (1, 0.09), (-1, 0.09)])
_ELL = np.array([(-0.6, -0.9), (-0.3, -0.9), (-0.3, 0.6), (0.6, 0.6), (0.6, 0.9), (-0.6, 0.9)])
_ZIGZAG = [(-1, 0), (-0.33, -0.5), (0.33, 0.2), (1, -0.4), (1, -0.1), (0.33, 0.5), (-0.33, -0.2), (-1, 0.3)]
_ARM = np.array([(0.34, 1.0), (0.34, 0.34), (1.0, 0.34), (1.0, -0.34), (0.34, -0.34), (0.34, -1.0)])
FIGURES: dict[str, Outline] = {
    "circle": ((_regular(48), 255),),
    "square": ((_SQUARE, 255),),
    "triangle": ((_regular(3) * 1.1, 255),),
    "star": ((_regular(10) * np.tile([1.12, 0.48], 5)[:, None], 255),),
    "cross": ((np.concatenate([_ARM, -_ARM]), 255),),
    "ring": ((_regular(48), 255), (_regular(48) * 0.55, 0)),
    "bar": ((_BAR, 255),),
    "ell": ((_ELL, 255),),
    "zigzag": ((np.array(_ZIGZAG), 255),),
    "crescent": ((_regular(48), 255), (_regular(48) * 0.85 + (0.45, 0.0), 0)),
}
"""Polygons of the figures, of radius about 1; the last four are in no class."""


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


def measure_region(mask: np.ndarray) -> VisibleRegion:
    """Describe a (H, W) bool mask that is not empty."""
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
