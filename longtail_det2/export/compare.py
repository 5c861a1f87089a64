"""Are two sets of detections of an image the same, whatever their order?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        boxes: largest difference of a coordinate in pixels, over matched detections.
        boxes_relative: the same as a share of the image's longer side.
        scores: largest difference of scores.
        masks: largest difference of mask probabilities; 0 without masks.
        at_the_cut: detections without a counterpart that are not in `unmatched`, because their score is at a
            limit (see :func:`compare_detections`).
        swapped: pairs of which rounding chose one, not in the other figures.
    """

    detections: tuple[int, int]
    unmatched: int
    boxes: float
    boxes_relative: float
    scores: float
    masks: float
    at_the_cut: int = 0
    swapped: int = 0

    @property
    def largest(self) -> float:
        """The figure that is compared with a tolerance; infinite if a detection has no counterpart."""
        return float("inf") if self.unmatched else max(self.boxes_relative, self.scores, self.masks)

    def __str__(self) -> str:
        one, other = self.detections
        return (
            f"{one} and {other} detections, {self.unmatched} without counterpart; largest differences: "
            f"boxes {self.boxes:.1e} px ({self.boxes_relative:.1e} of the longer side), "
            f"scores {self.scores:.1e}"
            + (f", masks {self.masks:.1e}" if self.masks else "")
            + (f"; {self.at_the_cut} more at a limit" if self.at_the_cut else "")
            + (f"; {self.swapped} swapped near ties" if self.swapped else "")
        )


def compare_detections(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    cut: float | np.ndarray = 0.0,
    overlap: float = 1.0,
) -> Difference:
    """Match the detections of two models within a class and measure how far apart they are.

    Each detection of the first set, best first, takes the nearest one left in the second: nearest by the
    larger of the score difference and the box difference relative to the image. Of two boxes of equal scores
    that overlap, rounding decides which one suppresses the other: such a swap, and what overlaps it and was
    suppressed by one of the two alone, does not count.

    Args:
        one: ``boxes`` (n, 4), ``scores`` (n,), ``classes`` (n,), perhaps ``masks`` (n, ...).
        other: the same of the other model.
        image_size: (height, width) of the image that the boxes are in.
        cut: score up to which a detection may be missing, a number or one per class: rounding decides whether
            it is just above a threshold, or just among the best hundred.
        overlap: IoU above which boxes of a class suppress each other.
    """
    side = float(max(image_size))
    limits = np.broadcast_to(cut, int(max([0, *one["classes"], *other["classes"]])) + 1)
    left = np.ones(len(other["scores"]), dtype=bool)
    worst = np.zeros(3)
    alone: list[tuple[Mapping[str, np.ndarray], int]] = []
    swapped: list[tuple[int, int]] = []
    for index in np.argsort(-one["scores"], kind="stable"):
        candidates = np.flatnonzero(left & (other["classes"] == one["classes"][index]))
        if not len(candidates):
            alone.append((one, index))
            continue
        boxes = np.abs(other["boxes"][candidates] - one["boxes"][index]).max(axis=1)
        scores = np.abs(other["scores"][candidates] - one["scores"][index])
        nearest = np.argmin(np.maximum(boxes / side, scores))
        chosen = candidates[nearest]
        left[chosen] = False
        near_tie = scores[nearest] <= TOLERANCE < boxes[nearest] / side
        if near_tie and _iou(one["boxes"][index], other["boxes"][chosen]) > overlap:
            swapped.append((index, chosen))
            continue
        mask = 0.0
        if "masks" in one:
            mask = float(
                np.abs(one["masks"][index].astype(np.float64) - other["masks"][chosen]).max(initial=0)
            )
        worst = np.maximum(worst, [boxes[nearest], scores[nearest], mask])
    alone += [(other, int(index)) for index in np.flatnonzero(left)]
    rivals = [(one["classes"][i], box) for i, j in swapped for box in (one["boxes"][i], other["boxes"][j])]
    alone = [
        (found, i)
        for found, i in alone
        if not any(c == found["classes"][i] and _iou(box, found["boxes"][i]) > overlap for c, box in rivals)
    ]
    unmatched = sum(bool(found["scores"][i] > limits[found["classes"][i]]) for found, i in alone)
    boxes, scores, masks = (float(value) for value in worst)
    return Difference(
        detections=(len(one["scores"]), len(other["scores"])),
        unmatched=unmatched,
        boxes=boxes,
        boxes_relative=boxes / side,
        scores=scores,
        masks=masks,
        at_the_cut=len(alone) - unmatched,
        swapped=len(swapped),
    )


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two XYXY boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(sides.clip(min=0)))
    return common / max(float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - common, 1e-9)
