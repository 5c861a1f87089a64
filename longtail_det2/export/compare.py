"""Are two sets of detections of an image the same, whatever their order?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-4
"""Largest difference that counts as equal: of scores, of mask probabilities, and of box coordinates as a
share of the image's longer side (float32 itself rounds a coordinate of 1333 pixels by 1e-4 pixels)."""


@dataclass(frozen=True)
class Difference:
    """How two sets of detections differ.

    Attributes:
        detections: in the first and in the second set.
        unmatched: detections without a counterpart of their class, over both sets.
        boxes: largest difference of a coordinate as a share of the image's longer side.
        scores: largest difference of scores.
        masks: largest difference of mask probabilities; 0 without masks.
        at_the_cut: detections without a counterpart that are not in `unmatched`, because their score is at a
            limit (see :func:`compare_detections`).
        swapped: pairs of which rounding chose one, not in the other figures.
    """

    detections: tuple[int, int]
    unmatched: int
    boxes: float
    scores: float
    masks: float
    at_the_cut: int = 0
    swapped: int = 0

    @property
    def largest(self) -> float:
        """The figure that is compared with a tolerance; infinite if a detection has no counterpart."""
        return float("inf") if self.unmatched else max(self.boxes, self.scores, self.masks)

    def __str__(self) -> str:
        one, other = self.detections
        return (
            f"{one} and {other} detections, {self.unmatched} without counterpart, {self.at_the_cut} at a "
            f"limit, {self.swapped} swapped near ties; largest differences: boxes {self.boxes:.1e} of the "
            f"longer side, scores {self.scores:.1e}, masks {self.masks:.1e}"
        )


def compare_detections(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    cut: Any = 0.0,
    overlap: float = 1.0,
) -> Difference:
    """Match the detections of two models within a class and measure how far apart they are.

    Each detection of the first set, best first, takes the nearest one left in the second: nearest by the
    larger of the score difference and the box difference. Of two boxes of equal scores that overlap, rounding
    decides which one suppresses the other: such a swap, and what overlaps it and was suppressed by one of the
    two alone, does not count.

    Args:
        one: ``boxes`` (n, 4), ``scores`` (n,), ``classes`` (n,), perhaps ``masks`` (n, ...).
        other: the same of the other model.
        image_size: (height, width) of the image that the boxes are in.
        cut: score up to which a detection may be missing, a number or one per class: rounding decides whether
            it is just above a threshold, or just among the best hundred.
        overlap: IoU above which boxes of a class suppress each other.
    """
    left = np.ones(len(other["scores"]), dtype=bool)
    worst = np.zeros(3)
    alone: list[tuple[int, np.ndarray, float]] = []  # class, box and score
    swapped: list[tuple[int, np.ndarray]] = []  # class and box, of both sets
    for label, box, score, mask in _rows(one, np.argsort(-one["scores"], kind="stable")):
        candidates = np.flatnonzero(left & (other["classes"] == label))
        if not len(candidates):
            alone.append((label, box, score))
            continue
        boxes = np.abs(other["boxes"][candidates] - box).max(axis=1) / max(image_size)
        scores = np.abs(other["scores"][candidates] - score)
        nearest = np.argmin(np.maximum(boxes, scores))
        chosen = candidates[nearest]
        left[chosen] = False
        near_tie = scores[nearest] <= TOLERANCE < boxes[nearest]
        if near_tie and _iou(box, other["boxes"][chosen]) > overlap:
            swapped += [(label, box), (label, other["boxes"][chosen])]
            continue
        masks = 0.0 if mask is None else np.abs(mask - other["masks"][chosen]).max(initial=0)
        worst = np.maximum(worst, [boxes[nearest], scores[nearest], masks])
    alone += [row[:3] for row in _rows(other, np.flatnonzero(left))]
    alone = [
        (label, box, score)
        for label, box, score in alone
        if not any(label == rival and _iou(box, near) > overlap for rival, near in swapped)
    ]
    unmatched = sum(bool(score > (cut[label] if np.ndim(cut) else cut)) for label, _, score in alone)
    return Difference(
        (len(one["scores"]), len(other["scores"])),
        unmatched,
        *worst.tolist(),
        at_the_cut=len(alone) - unmatched,
        swapped=len(swapped) // 2,
    )


def _rows(
    found: Mapping[str, np.ndarray], indices: np.ndarray
) -> Iterator[tuple[int, np.ndarray, float, Any]]:
    """Iterate over class, box, score and mask (None without) of some detections."""
    for index in indices:
        mask = found["masks"][index].astype(np.float64) if "masks" in found else None
        yield int(found["classes"][index]), found["boxes"][index], float(found["scores"][index]), mask


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two XYXY boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(sides.clip(min=0)))
    return common / max(float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common, 1e-9)
