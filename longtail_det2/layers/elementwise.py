"""Elementwise functions that the losses share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 what is narrower; float64 stays, so that gradients can be checked in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def focal_loss(
    logits: Tensor,
    positive: Tensor | None,
    alpha: float = 0.25,
    gamma: float | Tensor = 2.0,
    detach_focus: bool = False,
) -> Tensor:
    """Compute the focal loss per entry (Lin et al. 2017, equation 5): alpha_t (1 - p_t)^gamma (-log p_t).

    With u = -z for a positive entry of logit z and u = z for a negative one, 1 - p_t = sigmoid(u) and
    -log p_t = softplus(u). The power is taken through log sigmoid, whose gradient never overflows. With gamma
    = 0 and alpha < 0 it is binary cross entropy.

    Args:
        logits: any shape, at least float32.
        positive: bool of that shape; None: every entry is negative.
        alpha: weight of positive entries, 1 - `alpha` of negative ones; below 0: 1 for both.
        gamma: exponent, not negative; a tensor is broadcast with the logits.
        detach_focus: take the power as a constant in the gradient.

    Returns:
        The shape of `logits`.
    """
    signed = logits if positive is None else torch.where(positive, -logits, logits)
    losses = F.softplus(signed)
    if isinstance(gamma, Tensor) or gamma > 0:
        focus = torch.exp(gamma * F.logsigmoid(signed))
        losses = losses * (focus.detach() if detach_focus else focus)
    if alpha < 0:
        return losses
    negatives = (1.0 - alpha) * losses
    return negatives if positive is None else torch.where(positive, alpha * losses, negatives)


def asymmetric_loss(
    logits: Tensor,
    positive: Tensor | None,
    gamma_positive: float = 0.0,
    gamma_negative: float | Tensor = 4.0,
    margin: float = 0.05,
    detach_focus: bool = False,
) -> Tensor:
    """Compute the asymmetric loss per entry (Ridnik et al. 2021).

    With p = sigmoid(z) and p_m = max(p - m, 0), a positive entry costs (1 - p)^gamma_positive (-log p), a
    negative one p_m^gamma_negative (-log(1 - p_m)).

    Args:
        logits: any shape, at least float32.
        positive: bool of that shape; None: every entry is negative.
        gamma_positive: exponent of positives, not negative.
        gamma_negative: exponent of negatives, not negative; a tensor is broadcast with the logits.
        margin: m in [0, 1).
        detach_focus: take the powers as constants in the gradient.

    Returns:
        The shape of `logits`.
    """
    if margin > 0:
        scores = logits.sigmoid()
        counts = scores > margin
        shifted = torch.where(counts, scores - margin, 0.5)  # no power of 0, whose gradient may be infinite
        minus_log = -((-logits).sigmoid() + margin).clamp(max=1).log()
        focus = shifted**gamma_negative
        negatives = torch.where(counts, (focus.detach() if detach_focus else focus) * minus_log, 0)
    else:
        negatives = focal_loss(logits, None, -1, gamma_negative, detach_focus)
    if positive is None:
        return negatives
    return torch.where(positive, focal_loss(-logits, None, -1, gamma_positive, detach_focus), negatives)
