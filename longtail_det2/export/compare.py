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
    """

    detections: tuple[int, int]
    unmatched: int
    boxes: float
    boxes_relative: float
    scores: float
    masks: float
    at_the_cut: int = 0

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
        )


def compare_detections(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    *,
    cut: float | np.ndarray = 0.0,
) -> Difference:
    """Match the detections of two models within a class and measures how far apart they are.

    Each detection of the first set, best first, takes the nearest one left in the second: nearest by the
    larger of the score difference and the box difference relative to the image.

    Args:
        one: ``boxes`` (n, 4), ``scores`` (n,), ``classes`` (n,), perhaps ``masks`` (n, ...).
        other: the same of the other model.
        image_size: (height, width) of the image that the boxes are in.
        cut: score up to which a detection may be missing, a number or one per class: rounding decides whether
            it is just above a threshold, or just among the best hundred.
    """
    limits = np.asarray(cut)
    side = float(max(image_size))
    left = np.ones(len(other["scores"]), dtype=bool)
    worst = np.zeros(3)
    alone: list[bool] = []  # whether the score of a detection without counterpart is above the cut
    for index in np.argsort(-one["scores"], kind="stable"):
        candidates = np.flatnonzero(left & (other["classes"] == one["classes"][index]))
        if not len(candidates):
            limit = limits[one["classes"][index]] if limits.ndim else limits
            alone.append(bool(one["scores"][index] > limit))
            continue
        boxes = np.abs(other["boxes"][candidates] - one["boxes"][index]).max(axis=1)
        scores = np.abs(other["scores"][candidates] - one["scores"][index])
        nearest = np.argmin(np.maximum(boxes / side, scores))
        left[candidates[nearest]] = False
        mask = 0.0
        if "masks" in one:
            gap = one["masks"][index].astype(np.float64) - other["masks"][candidates[nearest]]
            mask = float(np.abs(gap).max(initial=0.0))
        worst = np.maximum(worst, [boxes[nearest], scores[nearest], mask])
    alone += (other["scores"] > (limits[other["classes"]] if limits.ndim else limits))[left].tolist()
    unmatched = sum(alone)
    boxes, scores, masks = (float(value) for value in worst)
    return Difference(
        detections=(len(one["scores"]), len(other["scores"])),
        unmatched=unmatched,
        boxes=boxes,
        boxes_relative=boxes / side,
        scores=scores,
        masks=masks,
        at_the_cut=len(alone) - unmatched,
    )
