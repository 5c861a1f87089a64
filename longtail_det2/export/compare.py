"""Are two sets of detections of an image the same, whatever their order?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

TOLERANCE = 1e-4
"""Largest difference that counts as equal: of scores, of mask probabilities, and of box coordinates as a
share of the image's longer side (float32 itself rounds a coordinate of 1333 pixels by 1e-4 pixels)."""


@dataclass(frozen=True)
class Difference:
    """How two sets of detections differ.

    Attributes:
        detections: in the first and in the second set.
        unmatched: detections without a counterpart of their class, over both sets.
        at_the_cut: more of them whose score is at a limit (see :func:`compare_detections`).
        swapped: pairs of which rounding chose one, not in the other figures.
        boxes: largest difference of a coordinate as a share of the image's longer side.
        scores: largest difference of scores.
        masks: largest difference of mask probabilities; 0 without masks.
    """

    detections: tuple[int, int]
    unmatched: int
    at_the_cut: int
    swapped: int
    boxes: float
    scores: float
    masks: float

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
    alone: list[tuple[Mapping[str, np.ndarray], Any]] = []  # the set and the place in it
    swapped: list[tuple[Mapping[str, np.ndarray], Any]] = []  # likewise, both of each pair
    for index in np.argsort(-one["scores"], kind="stable"):
        candidates = np.flatnonzero(left & (other["classes"] == one["classes"][index]))
        if not len(candidates):
            alone.append((one, index))
            continue
        boxes = np.abs(other["boxes"][candidates] - one["boxes"][index]).max(axis=1) / max(image_size)
        scores = np.abs(other["scores"][candidates] - one["scores"][index])
        nearest = np.argmin(np.maximum(boxes, scores))
        chosen = candidates[nearest]
        left[chosen] = False
        near_tie = scores[nearest] <= TOLERANCE < boxes[nearest]
        if near_tie and _overlap(one["boxes"][index], other["boxes"][chosen]) > overlap:
            swapped += [(one, index), (other, chosen)]
            continue
        masks = np.abs(one["masks"][index] - other["masks"][chosen]).max() if "masks" in one else 0.0
        worst = np.maximum(worst, [boxes[nearest], scores[nearest], masks])
    alone += [(other, index) for index in np.flatnonzero(left)]
    unmatched = at_the_cut = 0
    for found, index in alone:
        label, box = found["classes"][index], found["boxes"][index]
        rivals = [of["boxes"][place] for of, place in swapped if of["classes"][place] == label]
        if any(_overlap(box, rival) > overlap for rival in rivals):
            continue
        if found["scores"][index] > (cut[label] if np.ndim(cut) else cut):
            unmatched += 1
        else:
            at_the_cut += 1
    count = (len(one["scores"]), len(other["scores"]))
    return Difference(count, unmatched, at_the_cut, len(swapped) // 2, *worst.tolist())


def compare_scores(one: np.ndarray, other: np.ndarray) -> Difference:
    """Measure how far apart two models' scores (K,) of a whole image are; each counts as a detection."""
    worst = float(np.abs(one - other).max())
    return Difference((len(one), len(other)), 0, 0, 0, boxes=0.0, scores=worst, masks=0.0)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two XYXY boxes."""
    return float(box_iou(torch.from_numpy(one)[None], torch.from_numpy(other)[None]))
