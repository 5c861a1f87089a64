"""Progressive constraint of TSD (Song et al. 2020): be better than another head by a margin.

Shape shorthand: R rows (RoIs); K foreground classes; background is the last column.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FORMS = ("shrinking", "constant")


def progressive_constraint(
    reference: Tensor, value: Tensor, margin: float, form: str = "shrinking"
) -> Tensor:
    """Return max(0, s + m - t): what `value` t lacks of `reference` s and a margin m.

    Args:
        reference: s in [0, 1], of the head to be outdone; it gets no gradient.
        value: t in [0, 1], of the same shape.
        margin: m in [0, 1].
        form: "constant", the paper's; or "shrinking", the released code's, with the margin min(m, 1 - s), so
            that the loss can reach 0 where s is near 1.

    Raises:
        ValueError: unknown `form`.
    """
    if form not in FORMS:
        raise ValueError(f"the form of the constraint is {form!r}; it must be one of {', '.join(FORMS)}")
    reference = reference.detach()
    wanted = (reference + margin).clamp(max=1) if form == "shrinking" else reference + margin
    return F.relu(wanted - value)


def classification_constraint(
    reference: Tensor, scores: Tensor, positive: Tensor, margin: float, form: str = "shrinking"
) -> Tensor:
    """Return the constraint on the scores of the positive classes of each row, their mean.

    With one label per row and softmax scores this is the published one, in which background is a class.
    Background rows have none where a loss has no score of background (0 in both heads).

    Args:
        reference: (R, K + 1) scores of the head to be outdone.
        scores: (R, K + 1).
        positive: (R, K + 1) bool, the labels of each row.
        margin: see :func:`progressive_constraint`.
        form: see :func:`progressive_constraint`.

    Returns:
        (R,); 0 for rows without labels.
    """
    scored = torch.ones_like(positive)
    scored[:, -1] = (reference[:, -1] > 0) | (scores[:, -1] > 0)
    terms = progressive_constraint(reference, scores, margin, form)
    counted = positive & scored
    return torch.where(counted, terms, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def matched_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the overlap (R,) of rows of boxes (R, 4), with gradients; 0 where both have no area.

    Boxes are XYXY with x1 <= x2 and y1 <= y2.
    """
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    areas = [(one[:, 2:] - one[:, :2]).prod(dim=1) for one in (boxes, others)]
    return intersection / (areas[0] + areas[1] - intersection).clamp(min=1e-9)
