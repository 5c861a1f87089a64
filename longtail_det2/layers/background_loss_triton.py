"""Triton kernel of :func:`focal_background_sum`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 2048, 8
"""Entries of the logits that a program reads, whatever row they are in, and its warps."""

# ruff: noqa: ANN001, ANN201


@triton.jit
def focal_background_kernel(
    logits,
    background,
    weight,
    bias,
    upstream,
    result,
    total,
    factor,
    scale,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum of a block's losses to ``result[block]``, or its gradient to ``result``, like the logits.

    With t = exp(-|x|) <= 1: softplus(x) = max(x, 0) + log(1 + t), and sigmoid(x) is 1 or t over 1 + t. The
    logarithm is 2 artanh(t / (2 + t)) as a series, which is as exact for small t as for large ones; 1 + t
    would lose the digits of small t, which most background has.

    Args:
        logits: pointer to `total` contiguous entries.
        background: pointer to uint8 per row.
        weight: pointer to K float32, or None.
        bias: pointer to K float32, or None.
        upstream: pointer to a float32 scalar that the gradient is multiplied by.
        result: pointer, see above.
        total: R * K.
        factor: of the form, see :class:`FocalBackground`.
        scale: of the form.
        K: number of columns.
        GAMMA: of the form.
        GRADIENT: which of the two is written.
        BLOCK: entries of a program.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    start = first // K
    entries = tl.arange(0, BLOCK)
    places = (first - start * K).to(tl.int32) + entries
    rows = places // K
    columns = places - rows * K
    inside = entries < total - first
    counts = tl.load(background + start + rows, mask=inside, other=0) != 0
    whole = first + BLOCK <= total  # without a mask, loads are of 16 bytes
    if whole:
        values = tl.load(logits + first + entries)
    else:
        values = tl.load(logits + first + entries, mask=inside, other=0.0)
    x = values.to(tl.float32)
    if bias is not None:
        x -= tl.load(bias + columns)
    x *= scale

    t = tl.exp(-tl.abs(x))
    ratio = t / (2.0 + t)
    square = ratio * ratio
    series = 1.0 / 13
    for odd in tl.static_range(11, 0, -2):  # pyright: ignore
        series = series * square + 1.0 / odd
    log_1p = 2.0 * ratio * series
    softplus = tl.maximum(x, 0.0) + log_1p
    low = t / (1.0 + t)  # the smaller of sigmoid(x) and sigmoid(-x)
    positive = x > 0
    score = tl.where(positive, 1.0 - low, low)
    if GAMMA == 0:
        power = 1.0
    elif GAMMA == 2:
        power = score * score
    else:
        power = tl.exp(GAMMA * (tl.minimum(x, 0.0) - log_1p))

    if GRADIENT:
        found = power * score
        if GAMMA != 0:
            found += GAMMA * power * tl.where(positive, low, 1.0 - low) * softplus
        found *= factor * tl.load(upstream)
    else:
        found = power * softplus * (factor / scale)
    if weight is not None:
        found *= tl.load(weight + columns)
    found = tl.where(counts, found, 0.0)
    if not GRADIENT:
        tl.store(result + tl.program_id(0), tl.sum(found))
    elif whole:
        tl.store(result + first + entries, found.to(result.dtype.element_ty))
    else:
        tl.store(result + first + entries, found.to(result.dtype.element_ty), mask=inside)


def launch(
    logits: Tensor,
    background: Tensor,
    upstream: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    gamma: float,
    factor: float,
    scale: float,
) -> Tensor:
    """Return the sums of the blocks, float32, or with `upstream` the gradient (R, K).

    Args:
        logits: (R, K).
        background: (R,) bool.
        upstream: scalar, of the sum.
        weight: (K,) float32, or None.
        bias: (K,) float32, or None.
        gamma: see :class:`FocalBackground`.
        factor: see there.
        scale: see there.
    """
    logits = logits.contiguous()
    blocks = triton.cdiv(logits.numel(), BLOCK)
    result = logits.new_empty(blocks, dtype=torch.float32) if upstream is None else torch.empty_like(logits)
    if blocks:
        with torch.cuda.device_of(logits):
            focal_background_kernel[(blocks,)](
                logits,
                background.contiguous().view(torch.uint8),
                weight,
                bias,
                logits if upstream is None else upstream.float(),
                result,
                logits.numel(),
                factor,
                scale,
                K=logits.shape[1],
                GAMMA=gamma,
                GRADIENT=upstream is not None,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,  # pyright: ignore
            )
    return result
