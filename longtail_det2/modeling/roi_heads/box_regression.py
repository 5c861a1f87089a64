"""Box regression when a region has several labels.

Shape shorthand: R regions, K classes, P pairs of a foreground region and one of its positive labels.
"""

from __future__ import annotations

from typing import Any

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
) -> Tensor:
    """Regression loss of the foreground regions, divided by the number R of all regions.

    With class-specific deltas a region trains the deltas of each of its positive labels, every one with
    weight 1 / (number of its positive labels): else the boxes of inner classes, which are most often a
    label's ancestor and rarely the most specific one, would be predicted by a layer that hardly saw them. A
    region weighs the same however many labels it has; with one label a region this is Detectron2's loss.

    Args:
        proposal_boxes: (R, 4) absolute XYXY pixels.
        gt_boxes: (R, 4), the matched objects; rows of background regions are not read.
        pred_deltas: (R, 4) class-agnostic or (R, 4 K) class-specific.
        targets: of the R regions.
        transform: between boxes and deltas.
        loss_type: "smooth_l1" on the deltas; "giou", "diou" or "ciou" on the boxes.
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is L1.

    Returns:
        A scalar attached to the graph of `pred_deltas`; 0 without foreground regions.

    Raises:
        ValueError: unknown `loss_type`.
    """
    foreground = (targets.classes >= 0) & (targets.classes < targets.num_classes)
    if pred_deltas.shape[1] == 4:
        rows = foreground.nonzero()[:, 0]
        deltas, weights = pred_deltas[rows], None
    else:
        positive = (targets.labels[:, :-1] == POSITIVE) & foreground[:, None]
        rows, classes = positive.nonzero(as_tuple=True)
        deltas = pred_deltas.view(-1, targets.num_classes, 4)[rows, classes]
        weights = 1.0 / positive.sum(dim=1)[rows]

    losses = pair_losses(proposal_boxes[rows], gt_boxes[rows], deltas, transform, loss_type, smooth_l1_beta)
    if weights is not None:
        losses = losses * weights
    return losses.sum() / max(len(targets), 1)


def pair_losses(
    proposal_boxes: Tensor,
    gt_boxes: Tensor,
    deltas: Tensor,
    transform: Box2BoxTransform,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """(P,) losses of P rows of boxes and deltas; see :func:`multi_label_box_loss` for the arguments.

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


def keep_top_candidates(scores: Tensor, limit: int) -> Tensor:
    """Bounds how many (region, class) pairs of an image can reach non-maximum suppression.

    Args:
        scores: (R, K + 1) of one image, background last, not negative.
        limit: number of foreground entries to keep; 0 or less keeps all.

    Returns:
        (R, K + 1) where all foreground entries but the `limit` largest are -1, which no threshold lets pass;
        `scores` itself when nothing has to go.
    """
    foreground = scores[:, :-1]
    if limit <= 0:
        return scores
    flat = foreground.flatten()
    size: Any = flat.shape[0]
    if isinstance(size, Tensor):  # while a graph is recorded, where a branch would hold for one picture only
        size = torch.clamp(size, max=limit)
    elif size <= limit:
        return scores
    else:
        size = limit
    values, places = torch.topk(flat, size, sorted=False)
    kept = torch.full_like(flat, -1.0).scatter_(0, places, values)
    return torch.cat([kept.view_as(foreground), scores[:, -1:]], dim=1)
