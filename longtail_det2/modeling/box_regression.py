"""Box regression for regions with several labels.

Shape shorthand: R regions, K classes, P pairs of a foreground region and one of its positive labels.
"""

from __future__ import annotations

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets

_OVERLAP_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def multi_label_box_loss(
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    pred_deltas: Tensor,
    targets: MultiLabelTargets,
    *,
    transform: Box2BoxTransform,
    loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """Return the regression loss of the foreground regions.

    With class-specific deltas a region trains the deltas of each of its positive labels, each with weight
    1 / (number of its positive labels). Otherwise the boxes of inner classes, which are mostly ancestors of
    the most specific label, would come from weights that are hardly trained. A region weighs the same
    however many labels it has; with one label per region this is Detectron2's loss.

    Args:
        proposal_boxes: (R, 4) absolute XYXY pixels.
        gt_boxes: (R, 4), of the matched objects; rows of background regions are not read.
        pred_deltas: (R, 4) class-agnostic or (R, 4 K) class-specific.
        targets: of the R regions.
        transform: between boxes and deltas.
        loss_type: "smooth_l1" on the deltas; "giou", "diou" or "ciou" on the boxes.
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is L1.
        normalizer: divides the sum over regions; None for R, the number of all regions.

    Returns:
        A scalar attached to the graph of `pred_deltas`; 0 without foreground regions.

    Raises:
        ValueError: unknown `loss_type`.
    """
    rows, columns, weights = foreground_pairs(targets, pred_deltas.shape[1])
    deltas = pred_deltas.unflatten(1, (-1, 4))[rows, columns]
    losses = pair_losses(proposal_boxes[rows], gt_boxes[rows], deltas, transform, loss_type, smooth_l1_beta)
    return (losses * weights).sum() / (max(len(targets), 1) if normalizer is None else normalizer)


def foreground_pairs(targets: MultiLabelTargets, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pair each foreground region with those of its deltas that it trains.

    Args:
        targets: of R regions.
        width: 4 for class-agnostic deltas, 4 K for class-specific ones.

    Returns:
        (P,) indices of regions, (P,) indices of their deltas, and (P,) weights, which sum to 1 per region.
    """
    foreground = targets.foreground
    if width == 4:
        rows = foreground.nonzero()[:, 0]
        return rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.float32)
    positive = (targets.labels[:, :-1] == POSITIVE) & foreground[:, None]
    rows, columns = positive.nonzero(as_tuple=True)
    return rows, columns, 1.0 / positive.sum(dim=1)[rows]


def pair_losses(
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    deltas: Tensor,
    transform: Box2BoxTransform,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """Return (P,) losses of P rows of boxes and deltas; see :func:`multi_label_box_loss` for the arguments.

    Raises:
        ValueError: unknown `loss_type`.
    """
    if loss_type == "smooth_l1":
        wanted = transform.get_deltas(proposal_boxes, gt_boxes)
        return smooth_l1_loss(deltas, wanted, smooth_l1_beta, reduction="none").sum(dim=1)
    if loss_type in _OVERLAP_LOSSES:
        boxes = transform.apply_deltas(deltas, proposal_boxes)
        losses: Tensor = _OVERLAP_LOSSES[loss_type](boxes, gt_boxes, reduction="none")
        return losses
    known = ", ".join(["smooth_l1", *_OVERLAP_LOSSES])
    raise ValueError(f"unknown box regression loss {loss_type!r}; known: {known}")
