"""Sums over background rows without the matrices (R, K) that :meth:`ClassificationLoss.background` makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtail_det2.layers import FocalBackground, focal_background_sum, triton_serves

from .base import ClassificationLoss

ENTRIES_AT_ONCE = {"cpu": 1 << 19, "other": 1 << 24}
"""Logits whose losses are computed at once: what is near a CPU's caches; what keeps a GPU occupied."""


def background_sums(
    loss: ClassificationLoss, logits: Tensor, background: Tensor, rows: Tensor, kernels: str = "torch"
) -> tuple[dict[str, Tensor], Tensor]:
    """Sum the losses of background rows, and pick other rows.

    Many rows are computed part by part, and again for the gradient: of the size of the logits there is the
    gradient and nothing else, one for both results.

    Args:
        loss: any.
        logits: (R, L).
        background: (R,) bool.
        rows: (P,) int64, different ones.
        kernels: "torch"; or "triton" (experimental), for losses that have a
            :meth:`ClassificationLoss.focal_background` and logits that :func:`triton_serves`. Others are
            computed by PyTorch.

    Returns:
        Scalars, at least float32, by the names of the losses; and the picked logits (P, L).
    """
    form = focal_form(loss) if kernels == "triton" and triton_serves(logits) else None
    if form is not None:
        total, picked = focal_background_sum(logits, background, rows, form)
        return {"loss_cls": total}, picked
    part = max(ENTRIES_AT_ONCE.get(logits.device.type, ENTRIES_AT_ONCE["other"]) // loss.num_logits, 1)
    learned = any(parameter.requires_grad for parameter in loss.parameters())
    if len(logits) <= part or learned or torch.compiler.is_compiling():
        return _sums(loss, logits, background), logits[rows]
    names: list[str] = []
    totals, picked = _InParts.apply(logits, background, rows, loss, part, names)  # pyright: ignore
    return dict(zip(names, totals.unbind(), strict=True)), picked


def focal_form(loss: ClassificationLoss) -> FocalBackground | None:
    """Return the form of a loss, None where a subclass overrides `background` but not the form."""
    for cls in type(loss).__mro__:
        if "focal_background" in vars(cls):
            return loss.focal_background()
        if "background" in vars(cls):
            break
    return None


def _sums(loss: ClassificationLoss, logits: Tensor, background: Tensor) -> dict[str, Tensor]:
    losses = loss.background(logits)
    return {name: torch.where(background, values, 0).sum() for name, values in losses.items()}


class _InParts(torch.autograd.Function):
    """Totals (names,) and picked rows; gradients of the parts are computed when those of the totals come."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        background: Tensor,
        rows: Tensor,
        loss: ClassificationLoss,
        part: int,
        names: list[str],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, background, rows)
        device = logits.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.loss, ctx.part = loss, part
        parts = [_sums(loss, *both) for both in _split(part, logits, background)]
        names.extend(parts[0])
        return torch.stack([torch.stack(list(sums.values())) for sums in parts]).sum(dim=0), logits[rows]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, picked: Tensor) -> tuple[Tensor | None, ...]:
        logits, background, rows = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        device, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            for some, mask, found in _split(ctx.part, logits, background, gradient):
                some = some.detach().requires_grad_()
                totals = torch.stack(list(_sums(ctx.loss, some, mask).values()))
                found.copy_(torch.autograd.grad(totals, some, upstream)[0])
        return gradient.index_add_(0, rows, picked), *[None] * 5


def _split(part: int, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(tensor.split(part) for tensor in tensors), strict=True)
