"""From losses per row to the scalars of a training step; shared by RoI heads and dense heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longtail_det2.structures.multi_label import DenseTargets

from .base import ClassificationLoss


def reduce_losses(
    unreduced: Mapping[str, Tensor],
    normalizer: float | Tensor,
    weights: float | Mapping[str, float] = 1.0,
) -> dict[str, Tensor]:
    """Sum the losses of all rows, divide them by the head's normalizer and weight them.

    Args:
        unreduced: tensors of any shape by name.
        normalizer: positive scalar without gradient.
        weights: for all keys alike, or by key; a key without one takes that of ``loss_cls``, else 1.

    Returns:
        Scalars with the same keys.
    """
    if not isinstance(weights, Mapping):
        weights = {"loss_cls": weights}
    default = weights.get("loss_cls", 1.0)
    return {
        name: values.sum() / normalizer * weights.get(name, default) for name, values in unreduced.items()
    }


def dense_unreduced(loss: ClassificationLoss, logits: Tensor, targets: DenseTargets) -> dict[str, Tensor]:
    """Compute the losses of anchors, almost all of them background, without an (R, K) label matrix.

    Args:
        loss: any loss; one for dense heads has its own :meth:`ClassificationLoss.background`.
        logits: (R, L) of all anchors of a batch.
        targets: of the same anchors.

    Returns:
        (R + P,) each, by name: those of the background rows (0 elsewhere), then of the P positive rows.
    """
    positive = loss.unreduced(logits[targets.rows], targets.positives)
    return {
        name: torch.cat([torch.where(targets.background, values, 0), positive[name]])
        for name, values in loss.background(logits).items()
    }
