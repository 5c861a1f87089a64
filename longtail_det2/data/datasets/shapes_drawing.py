"""Draws one image of the shapes data set and measures what is visible of each object.

Shapes are polygons, rasterised with 4 x 4 samples a pixel by Pillow. Later objects cover earlier ones; the
share of each pixel in which an object is visible is carried along, so that masks, boxes and the flags
"occluded" and "truncated" are measured, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longtail_det2.data.datasets.shapes_figures import Part, background, rasterise, unit_outline
from longtail_det2.data.datasets.shapes_masks import VisibleRegion, measure_region
from longtail_det2.data.datasets.shapes_plan import SPLITS, PlannedImage, PlannedObject
from longtail_det2.data.datasets.shapes_vocabulary import COLOURS, ShapesVocabulary

OBJECT_SIZE = (0.125, 0.34)
"""Smallest and largest object as a fraction of the image side: 16 to 44 px of 128."""

MIN_VISIBLE = (0.55, 0.75)
"""Visible fraction that an object of one or of two colours keeps (unless an image is hopelessly full)."""

OUTER_SIZE = (0.2, 0.34)
"""The same of an object with another inside, of whose rim enough must be seen."""

NESTED_SCALE = (0.79, 0.85)
"""Size of an object over that of the one around it: an IoU of the boxes of 0.62 to 0.72."""

_MIN_OUTER = 20
_KEPT_NESTED = 0.97
_OCCLUDED_BELOW = 0.95
_TRUNCATED_BELOW = 0.99
_ATTEMPTS = 60
_FULL_ATTEMPTS = 25
_PICKY_ATTEMPTS = 40
_WHOLE_MEMBER = 0.9
_DISTRACTORS = ("bar", "ell", "zigzag", "crescent")


@dataclass(frozen=True)
class DrawnObject:
    """What can be seen of a planned object.

    Attributes:
        region: visible pixels.
        occluded: something in front hides more than 5 % of it.
        truncated: more than 1 % of it lies outside the image.
        members: for a group the visible regions of those members that are at least 90 % visible.
    """

    region: VisibleRegion
    occluded: bool
    truncated: bool
    members: tuple[VisibleRegion, ...] = ()


@dataclass
class _Placed:
    """An object on the canvas.

    Attributes:
        figure: its first part.
        layers: the canvas layers of its parts.
        part_areas: whole areas of its parts, px.
        box: before occlusion, XYXY.
        area: whole area, px.
        inside: area within the image before occlusion, px.
        needed: the fraction of `area` that must stay visible.
    """

    figure: Part
    layers: range
    part_areas: list[float]
    box: np.ndarray
    area: float
    inside: float
    needed: float


def draw_image(
    planned: PlannedImage, vocabulary: ShapesVocabulary, size: int, seed: int, split: str, index: int
) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draws image `index` of a split; depends on nothing but the arguments.

    Returns:
        (size, size, 3) uint8 RGB and one DrawnObject for each planned object, in their order.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 2, index])
    canvas = _Canvas(background(size, rng), rng)
    # Groups need room, so they come first; others lie in front of them. An object and the one inside it come
    # last, one after the other, so that little can hide parts of them and change the overlap of their boxes.
    order = sorted(range(len(planned.objects)), key=lambda k: _turn(planned.objects[k]))
    placed = {k: canvas.place(planned.objects[k], vocabulary) for k in order}
    if rng.random() < 0.2:
        canvas.add_occluder(list(placed.values()))
    drawn = [canvas.measure(placed[k], planned.objects[k].group) for k in range(len(planned.objects))]
    noise = rng.standard_normal(canvas.pixels.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return np.clip(canvas.pixels + noise + 0.5, 0, 255).astype(np.uint8), drawn


def _turn(planned: PlannedObject) -> int:
    """When to draw an object: a smaller number is earlier."""
    if planned.group:
        return 0
    return 2 if planned.within or planned.inner is not None else 1


class _Canvas:
    """Pixels (size, size, 3) float32 and, for each figure so far, its visible share of each pixel."""

    def __init__(self, pixels: np.ndarray, rng: np.random.Generator) -> None:
        self.pixels = pixels
        self.size = len(pixels)
        self.rng = rng
        self.layers: list[np.ndarray] = []
        self.placed: list[_Placed] = []
        for _ in range(int(rng.integers(0, 4))):
            self._add_neutral(str(rng.choice(_DISTRACTORS)), rng.uniform(0.1, 0.3) * self.size)

    def place(self, planned: PlannedObject, vocabulary: ShapesVocabulary) -> _Placed:
        """Finds room for an object and paints it.

        Early attempts keep boxes apart (four of five objects) or allow a moderate overlap; later ones shrink
        the object. Where nothing fits, the attempt that hides least is taken. An object within another needs
        no room: it lies within the last one.
        """
        if planned.within:
            return self._place_within(self.placed[-1], vocabulary.leaves[planned.leaves[0]][1])
        shape = vocabulary.leaves[planned.leaves[0]][0]
        needed = MIN_VISIBLE[len(planned.leaves) - 1]
        strict = self.rng.random() < 0.8
        # Both colours must be seen, so two-coloured objects stay within the image; so do pairs of objects.
        may_leave = len(planned.leaves) == 1 and planned.inner is None and self.rng.random() < 0.12
        best: tuple[float, list[Part], np.ndarray] | None = None
        for attempt in range(_ATTEMPTS):
            parts, box = self._propose(shape, planned, may_leave, attempt)
            fits = self._box_overlap(box) <= (0.02 if strict and attempt < _FULL_ATTEMPTS else 0.25)
            if not fits and attempt < _PICKY_ATTEMPTS:
                continue
            seen = self._least_seen(parts, needed)
            if best is None or seen > best[0] or (fits and seen >= 1):
                best = (seen, parts, box)
            if fits and seen >= 1:
                break
        assert best is not None
        colours = [vocabulary.leaves[leaf][1] for leaf in planned.leaves]
        return self._paint(best[1], best[2], colours, needed)

    def _place_within(self, outer: _Placed, colour: str) -> _Placed:
        """Paints a smaller copy of a figure, in another colour, in the middle of it.

        What is seen of both then has to stay visible.
        """
        scale, middle = self.rng.uniform(*NESTED_SCALE), np.array(outer.figure.centre)
        outline = tuple(((points - middle) * scale + middle, fill) for points, fill in outer.figure.outline)
        part = rasterise(outline, self.size)
        placed = self._paint([part], _box_of([part]), [colour], _KEPT_NESTED)
        outer.needed = _KEPT_NESTED * float(self.layers[outer.layers[0]].sum()) / outer.area
        return placed

    def _propose(
        self, shape: str, planned: PlannedObject, may_leave: bool, attempt: int
    ) -> tuple[list[Part], np.ndarray]:
        """Figures of an object of random size, place and turn, and their box before occlusion (XYXY)."""
        shrink = 0.97 ** max(attempt - _FULL_ATTEMPTS, 0)
        if planned.group:
            parts = self._propose_group(shape, self.rng.uniform(0.062, 0.072) * self.size * max(shrink, 0.75))
        else:
            low, high = self._radii(planned)
            radius = max(float(np.exp(self.rng.uniform(np.log(low), np.log(high)))) * shrink, low)
            margin = -0.45 * radius if may_leave else 1.02 * radius
            centre = self.rng.uniform(margin, self.size - margin, size=2)
            parts = [self._figure(shape, centre, radius)]
        return parts, _box_of(parts)

    def _radii(self, planned: PlannedObject) -> tuple[float, float]:
        """Smallest and largest radius of an object, px."""
        low, high = (side * self.size / 2 for side in (OBJECT_SIZE if planned.inner is None else OUTER_SIZE))
        if planned.inner is not None:
            low = max(low, _MIN_OUTER / 2)
        return low, max(low, high)

    def _propose_group(self, shape: str, radius: float) -> list[Part]:
        """Six to nine touching figures on a jittered triangular grid, wholly inside the image."""
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
        """A turned, slightly stretched figure of circumradius about `radius` px around `centre` (x, y)."""
        angle, stretch = self.rng.uniform(0, 2 * np.pi), np.sqrt(self.rng.uniform(0.85, 1.18))
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = radius * np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])
        outline = tuple((points @ matrix.T + centre, fill) for points, fill in unit_outline(shape))
        return rasterise(outline, self.size)

    def _box_overlap(self, box: np.ndarray) -> float:
        """Greatest intersection of `box` with an earlier box, over the smaller of the two areas."""
        if not self.placed:
            return 0.0
        others = np.stack([placed.box for placed in self.placed])
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
        shared = np.prod(np.maximum(sides, 0), axis=1)
        return float((shared / np.minimum(areas, np.prod(box[2:] - box[:2]))).max())

    def _least_seen(self, parts: list[Part], needed: float = 0.0) -> float:
        """The smallest ratio, over all objects, of the visible fraction to the fraction needed.

        It is taken as if `parts` were painted; they count as a new object if `needed` is positive.
        """
        ratios = [np.inf]
        if needed > 0:
            inside = sum(float(part.cover.sum()) for part in parts)
            ratios.append(inside / sum(part.area for part in parts) / needed)
        for placed in self.placed:
            seen = sum(self._seen_behind(layer, parts) for layer in placed.layers)
            ratios.append(seen / (placed.area * placed.needed))
        return min(ratios)

    def _seen_behind(self, layer: int, parts: list[Part]) -> float:
        """Visible area of a layer, in px, if `parts` were painted over it."""
        share = self.layers[layer].copy()
        for part in parts:
            share[part.window] *= 1 - part.cover
        return float(share.sum())

    def _paint(self, parts: list[Part], box: np.ndarray, colours: list[str], needed: float) -> _Placed:
        """Paints the parts one over the other; the parts of a group share their colour."""
        tones = [np.array(COLOURS[name]) + self.rng.normal(0, 5, 3).clip(-10, 10) for name in colours]
        first = len(self.layers)
        for part in parts:
            self._cover(part)
            share = np.zeros((self.size, self.size), dtype=np.float32)
            share[part.window] = part.cover
            self.layers.append(share)
            # Members of a group differ in brightness, or they would run into one blot.
            light = self.rng.uniform(0.8, 1.08) if len(parts) > 1 else 1.0
            self._blend(part, self._shade(part, [tone * light for tone in tones]))
        layers = range(first, len(self.layers))
        inside = float(sum(self.layers[layer].sum() for layer in layers))
        # Parts of a group hide one another: its whole area is that of their union.
        area = parts[0].area if len(parts) == 1 else inside
        placed = _Placed(parts[0], layers, [part.area for part in parts], box, area, inside, needed)
        self.placed.append(placed)
        return placed

    def _shade(self, part: Part, tones: list[np.ndarray]) -> np.ndarray:
        """Colours (h, w, 3) of a figure: a light gradient, and two halves where there are two tones."""
        rows, columns = (np.arange(side.start, side.stop, dtype=np.float32) + 0.5 for side in part.window)
        x, y = columns[None, :] - part.centre[0], rows[:, None] - part.centre[1]
        light, cut = self.rng.uniform(0, 2 * np.pi, size=2)
        reach = max(len(rows), len(columns), 1) / 2
        slope = np.float32(self.rng.uniform(0.04, 0.14) / reach)
        gradient = 1 + slope * (x * np.float32(np.cos(light)) + y * np.float32(np.sin(light)))
        tone = tones[0].astype(np.float32)[None, None]
        if len(tones) == 2:
            side = np.clip(x * np.float32(np.cos(cut)) + y * np.float32(np.sin(cut)) + 0.5, 0, 1)[..., None]
            tone = tone * (1 - side) + tones[1].astype(np.float32) * side
        return tone * gradient[..., None]

    def _cover(self, part: Part) -> None:
        """Takes what `part` covers from the layers so far."""
        clear = 1 - part.cover
        for share in self.layers:
            share[part.window] *= clear

    def _blend(self, part: Part, colour: np.ndarray) -> None:
        region = self.pixels[part.window]
        region += part.cover[..., None] * (colour - region)

    def _add_neutral(self, kind: str, radius: float) -> None:
        """Paints a grey figure that is of no class, behind everything that follows."""
        part = self._figure(kind, self.rng.uniform(0, self.size, size=2), radius)
        self._blend(part, self._shade(part, [self._grey()]))

    def _grey(self) -> np.ndarray:
        return self.rng.uniform(25, 160) + self.rng.uniform(-8, 8, size=3)

    def add_occluder(self, placed: list[_Placed]) -> None:
        """Lays a thin grey bar across one object, unless that would hide too much of any."""
        target = placed[int(self.rng.integers(len(placed)))]
        middle = (target.box[:2] + target.box[2:]) / 2
        part = self._figure("bar", middle, self.rng.uniform(0.12, 0.3) * self.size)
        if self._least_seen([part]) >= 1:
            self._cover(part)
            self._blend(part, self._shade(part, [self._grey()]))

    def measure(self, placed: _Placed, group: bool) -> DrawnObject:
        """Region and flags of a placed object once everything is painted."""
        share = np.sum([self.layers[layer] for layer in placed.layers], axis=0)
        visible = float(share.sum())
        members = []
        for layer, area in zip(placed.layers, placed.part_areas, strict=True) if group else ():
            member = measure_region(self.layers[layer] >= 0.5)
            if member is not None and float(self.layers[layer].sum()) >= _WHOLE_MEMBER * area:
                members.append(member)
        region = measure_region(share >= 0.5)
        assert region is not None, "an object without a visible pixel"
        return DrawnObject(
            region=region,
            occluded=visible < _OCCLUDED_BELOW * placed.inside,
            truncated=placed.inside < _TRUNCATED_BELOW * placed.area,
            members=tuple(members),
        )


def _box_of(parts: list[Part]) -> np.ndarray:
    """The box around the windows of some figures, (4,) XYXY."""
    corners = np.array([[w[1].start, w[0].start, w[1].stop, w[0].stop] for w in (p.window for p in parts)])
    return np.concatenate([corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)])
