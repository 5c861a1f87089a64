"""The summed loss of background rows: nearly all that the classification loss of a dense head computes.

Shape shorthand in this module:

    R: number of rows (anchors), P: of them chosen ones, such as the positive; K: number of classes

In PyTorch a focal loss of R = 200,700 anchors and K = 1,203 classes makes several matrices (R, K) of 966 MB
each. The Triton kernel reads the logits once for the sum and once for the gradient, and writes the gradient
alone. A gradient made along with the sum would be read and written once more, for its factor in the backward
pass, and in half precision the factor of a gradient scaler would come too late for what has vanished.

EXPERIMENTAL: compiled for GPUs and compared with float64 in Triton's interpreter, but not yet timed on a GPU,
so nothing uses it unless asked to (``MODEL.KERNELS`` "triton").
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtail_det2.utils.errors import ConfigError

KERNELS = ("torch", "triton")
"""Values of ``MODEL.KERNELS``."""


class FocalBackground(NamedTuple):
    """What the kernel has to know of an elementwise loss of negatives.

    An entry of logit z in column k costs, with x = scale * (z - bias_k),

        factor * weight_k * softplus(x) * sigmoid(x)^gamma / scale

    With the defaults this is binary cross entropy, with `gamma` and `factor` the focal loss, with all of them
    what :func:`distribution_balanced_loss` has for negatives.

    Attributes:
        gamma: not negative.
        factor: of all entries.
        scale: positive.
        weight: (K,); None for 1.
        bias: (K,); None for 0.
    """

    gamma: float = 0.0
    factor: float = 1.0
    scale: float = 1.0
    weight: Tensor | None = None
    bias: Tensor | None = None


def checked_kernels(kernels: str) -> str:
    """Return the value of `KERNELS`; raises ConfigError where it is none, or Triton is not installed."""
    if kernels not in KERNELS:
        raise ConfigError(f"MODEL.KERNELS is {kernels!r}; it must be one of {', '.join(KERNELS)}")
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise ConfigError('MODEL.KERNELS is "triton", but there is no package triton: pip install triton')
    return kernels


def triton_serves(logits: Tensor) -> bool:
    """Whether the Triton kernel can read these logits: half precision or float32, on a CUDA device.

    CPU tensors are for tests: Triton interprets its kernels where ``TRITON_INTERPRET=1`` is set before its
    import.
    """
    known = logits.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and (logits.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def focal_background_sum(
    logits: Tensor, background: Tensor, rows: Tensor, form: FocalBackground
) -> tuple[Tensor, Tensor]:
    """Sum the losses of the background rows by Triton, and pick other rows.

    Both at once, since the gradient of rows picked by themselves would be one more matrix (R, K). Sums are in
    float32, always in the same order.

    Args:
        logits: (R, K), see :func:`triton_serves`; copied where they are not contiguous.
        background: (R,) bool.
        rows: (P,) int64, different ones.
        form: of the loss; no gradient flows to its tensors.

    Returns:
        The sum, a float32 scalar, and the picked logits (P, K).
    """
    total, picked = _focal_background_sum(logits, background, rows, *_arguments(form))
    return total, picked


def _arguments(form: FocalBackground) -> tuple[Any, ...]:
    tensors = (
        None if values is None else values.detach().float().contiguous()
        for values in (form.weight, form.bias)
    )
    return (*tensors, float(form.gamma), float(form.factor), float(form.scale))


_FORM = "Tensor? weight, Tensor? bias, float gamma, float factor, float scale"


@torch.library.custom_op(
    "longtail_det2::focal_background_sum",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor background, Tensor rows, {_FORM}) -> (Tensor, Tensor)",
)
def _focal_background_sum(
    logits: Tensor, background: Tensor, rows: Tensor, *form: Any
) -> tuple[Tensor, Tensor]:
    from .background_loss_triton import launch  # not before it is asked for: triton need not be there

    return launch(logits, background, None, *form).sum(), logits[rows]


@_focal_background_sum.register_fake
def _(logits: Tensor, background: Tensor, rows: Tensor, *form: Any) -> tuple[Tensor, Tensor]:
    total = logits.new_empty((), dtype=torch.float32)
    return total, logits.new_empty((rows.shape[0], logits.shape[1]))


@torch.library.custom_op(
    "longtail_det2::focal_background_gradient",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor background, Tensor upstream, {_FORM}) -> Tensor",
)
def _focal_background_gradient(logits: Tensor, background: Tensor, upstream: Tensor, *form: Any) -> Tensor:
    """Return (R, K): `upstream`, a scalar, times the derivative; 0 in rows that are not background."""
    from .background_loss_triton import launch

    return launch(logits, background, upstream, *form)


@_focal_background_gradient.register_fake
def _(logits: Tensor, background: Tensor, upstream: Tensor, *form: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, background, rows, weight, bias, *ctx.numbers = inputs
    ctx.save_for_backward(logits, background, rows, weight, bias)


def _backward(ctx: Any, upstream: Tensor, picked: Tensor) -> tuple[Tensor | None, ...]:
    logits, background, rows, weight, bias = ctx.saved_tensors
    gradient = _focal_background_gradient(logits, background, upstream, weight, bias, *ctx.numbers)
    return gradient.index_add_(0, rows, picked), *[None] * 7


_focal_background_sum.register_autograd(_backward, setup_context=_save)
