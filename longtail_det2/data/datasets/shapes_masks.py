"""Binary masks as polygons and run lengths, exactly.

Polygons follow the pixel edges, so that rasterising them by the COCO rules gives the mask back pixel by
pixel. A polygon cannot have a hole: a mask with holes is cut into pieces without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class VisibleRegion:
    """The visible pixels of an object.

    Attributes:
        box: tight (x0, y0, x1, y1) in px, x1 and y1 exclusive.
        area: number of pixels.
        polygons: each a flat list x0, y0, x1, y1, ... of pixel corners; their union is the mask.
        runs: COCO's uncompressed run lengths.
    """

    box: tuple[int, int, int, int]
    area: int
    polygons: list[list[int]]
    runs: dict[str, Any]


def measure_region(mask: np.ndarray) -> VisibleRegion | None:
    """Describes a (H, W) bool mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    crop = mask[y0:y1, x0:x1]
    polygons = [
        [value + (x0, y0)[k % 2] for k, value in enumerate(polygon)] for polygon in mask_to_polygons(crop)
    ]
    return VisibleRegion((x0, y0, x1, y1), int(crop.sum()), polygons, mask_to_runs(mask))


def mask_to_runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a (H, W) bool mask: column by column, background first."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": [mask.shape[0], mask.shape[1]]}


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons along the pixel edges of a (H, W) bool mask whose union is the mask.

    Pieces that touch at a corner only become separate polygons. A mask with a hole is cut at a column
    through the hole, until no piece has one.

    Returns:
        Flat lists x0, y0, x1, y1, ... of corners, x in [0, W] and y in [0, H]; empty for an empty mask.
    """
    outer: list[list[tuple[int, int]]] = []
    for loop in _boundary_loops(mask):
        if _signed_area(loop) < 0:
            xs = [x for x, _ in loop]
            cut = (min(xs) + max(xs) + 1) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = False
            right[:, :cut] = False
            return mask_to_polygons(left) + mask_to_polygons(right)
        outer.append(loop)
    return [[value for corner in loop for value in corner] for loop in outer]


def _boundary_loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed corner lists along the pixel edges, the mask on the right hand of the way (y points down)."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=bool)
    padded[1:-1, 1:-1] = mask
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dx, dy), (ox, oy), neighbour in _SIDES:
        inside = padded[1:-1, 1:-1]
        outside = padded[1 + neighbour[1] : mask.shape[0] + 1 + neighbour[1]]
        outside = outside[:, 1 + neighbour[0] : mask.shape[1] + 1 + neighbour[0]]
        for y, x in np.argwhere(inside & ~outside).tolist():
            steps.setdefault((x + ox, y + oy), []).append((dx, dy))
    loops = []
    while steps:
        loops.append(_follow(steps, next(iter(steps))))
    return loops


def _follow(
    steps: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]
) -> list[tuple[int, int]]:
    """Walks one loop from `start`, taking its steps out of `steps`; returns the corners where it turns."""
    corner, first = start, steps[start][0]
    heading = step = first
    loop = [start]
    while True:
        steps[corner].remove(step)
        if not steps[corner]:
            del steps[corner]
        corner, heading = (corner[0] + step[0], corner[1] + step[1]), step
        # Where two pixels meet at a corner only, the right turn stays with the pixel that is followed.
        right = (-heading[1], heading[0])
        if corner == start and (start not in steps or right == first):
            return loop[1:] if heading == first else loop
        choices = steps[corner]
        step = right if right in choices else choices[0]
        if step != heading:
            loop.append(corner)


def _signed_area(loop: list[tuple[int, int]]) -> float:
    """Positive for an outer boundary, negative for a hole."""
    following = [*loop[1:], loop[0]]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, following, strict=True)) / 2


# For each side of a pixel: the way along it, its first corner, and the neighbour beyond it (x, y).
_SIDES = (
    ((1, 0), (0, 0), (0, -1)),
    ((0, 1), (1, 0), (1, 0)),
    ((-1, 0), (1, 1), (0, 1)),
    ((0, -1), (0, 1), (-1, 0)),
)
