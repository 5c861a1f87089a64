"""Elementwise functions that the losses share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 what is narrower; float64 stays, so that gradients can be checked in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def focal_loss(logits: Tensor, positive: Tensor | None, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Compute the focal loss per entry (Lin et al. 2017, equation 5): alpha_t (1 - p_t)^gamma (-log p_t).

    With u = -z for a positive entry of logit z and u = z for a negative one, 1 - p_t = sigmoid(u) and
    -log p_t = softplus(u). The power is taken through log sigmoid, whose gradient never overflows. With gamma
    = 0 and alpha < 0 it is binary cross entropy.

    Args:
        logits: any shape, at least float32.
        positive: bool of that shape; None: every entry is negative.
        alpha: weight of positive entries, 1 - `alpha` of negative ones; below 0: 1 for both.
        gamma: exponent, not negative.

    Returns:
        The shape of `logits`.
    """
    signed = logits if positive is None else torch.where(positive, -logits, logits)
    losses = F.softplus(signed)
    if gamma > 0:
        losses = losses * torch.exp(gamma * F.logsigmoid(signed))
    if alpha < 0:
        return losses
    negatives = (1.0 - alpha) * losses
    return negatives if positive is None else torch.where(positive, alpha * losses, negatives)
