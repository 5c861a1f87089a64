"""Sums of the focal loss over regions and classes, for sampled regions and for all anchors.

With u = -z for a positive entry of logit z and u = z for a negative one, 1 - p_t = sigmoid(u) and
-log p_t = softplus(u). An entry costs alpha_t sigmoid(u)^gamma softplus(u) (Lin et al. 2017, equation 5),
which with gamma = 0 and no alpha is binary cross entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import IGNORED, POSITIVE


def focal_sum(logits: Tensor, truth: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The sum over all entries that are not ignored.

    Args:
        logits: (R, K), at least float32.
        truth: (R, K) int8 in {1, 0, -1}.
        alpha: weight of positive entries, 1 - `alpha` of negative ones; below 0: 1 for both.
        gamma: exponent, not negative.

    Returns:
        A scalar attached to the graph of `logits`.
    """
    positive = truth == POSITIVE
    losses = _entries(torch.where(positive, -logits, logits), gamma)
    weight = (truth != IGNORED).to(logits.dtype)
    if alpha >= 0:
        weight = weight * torch.where(positive, alpha, 1.0 - alpha).to(logits.dtype)
    return (losses * weight).sum()


def dense_focal_sum(logits: Tensor, targets: DenseTargets, *, alpha: float, gamma: float) -> Tensor:
    """The sum over all anchors that are not ignored; see :func:`focal_sum`.

    Every entry of a background anchor is negative, so no truth matrix is made for those.

    Args:
        logits: (R, K), at least float32.
        targets: of the R anchors.
        alpha: see :func:`focal_sum`.
        gamma: see :func:`focal_sum`.
    """
    background = (targets.classes == targets.num_classes).to(logits.dtype)
    total = (_entries(logits, gamma).sum(dim=1) * background).sum()
    if alpha >= 0:
        total = (1.0 - alpha) * total
    return total + focal_sum(logits[targets.rows], targets.labels, alpha=alpha, gamma=gamma)


def _entries(signed: Tensor, gamma: float) -> Tensor:
    """sigmoid(u)^gamma softplus(u); the power by way of log sigmoid, whose gradient never overflows."""
    losses = F.softplus(signed)
    return losses if gamma == 0 else losses * torch.exp(gamma * F.logsigmoid(signed))
