r"""Cosine-normalized linear layers: a cosine similarity times a temperature.

Long-tail classifiers grow longer weight vectors for frequent classes, which then win by length alone; here
both features and weights have length 1. Wang et al. 2021 (Seesaw loss) use both layers with a temperature
tau of 20:

    y_j = tau < x / (|x|^power + eps), w_j / (|w_j|^power + eps) > + b_j

Weights start from N(0, 0.01), the bias from 0. Under autocast the lengths are float32 and the product has
autocast's type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .elementwise import at_least_float32


def normalize(values: Tensor, dims: int | tuple[int, ...], power: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Divide values by their length: x / (|x|^power + eps), with |x| the Euclidean length along `dims`.

    Args:
        values: any floating type.
        dims: dimensions of the length.
        power: 1 gives length 1 (nearly, for `eps`), 0.5 the square root of the length.
        eps: added to the divisor, positive.

    Returns:
        The shape of `values`, at least float32. Where x is zero so is the result, and its gradient (1 / eps
        times the incoming one) is finite for any power.
    """
    values = at_least_float32(values)
    with torch.autocast(values.device.type, enabled=False):
        squares = values.square().sum(dim=dims, keepdim=True)
        zero = squares == 0
        lengths = torch.where(zero, 0, torch.where(zero, 1, squares).pow(power / 2))
        return values / (lengths + eps)


class _Normalized(nn.Module):
    """What both layers share; to be named before torch's layer among the bases."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, *args: Any, temperature: float = 20.0, power: float = 1.0, eps: float = 1e-6, **kwargs: Any
    ) -> None:
        """Make the layer.

        Args:
            args: of torch's layer.
            temperature: tau.
            power: of the lengths, see :func:`normalize`.
            eps: see :func:`normalize`.
            kwargs: of torch's layer.
        """
        self.temperature, self.power, self.eps = temperature, power, eps
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        """Set weights to N(0, 0.01) and the bias to 0."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"{super().extra_repr()}, temperature={self.temperature}, power={self.power}"


class NormalizedLinear(_Normalized, nn.Linear):
    """Linear layer of normalized features and weights; see the module."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight = normalize(self.weight, 1, self.power, self.eps)
        return F.linear(self.temperature * normalize(input, -1, self.power, self.eps), weight, self.bias)


class NormalizedConv2d(_Normalized, nn.Conv2d):
    """Convolution of features normalized per pixel and of normalized weights; see the module.

    A 1 x 1 convolution is :class:`NormalizedLinear` per pixel. The weights of a larger kernel are normalized
    over the input channels, per position of the kernel, or with `norm_over_kernel` over the whole kernel.
    """

    def __init__(self, *args: Any, norm_over_kernel: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm_over_kernel = norm_over_kernel

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        weight = normalize(self.weight, (1, 2, 3) if self.norm_over_kernel else 1, self.power, self.eps)
        features = self.temperature * normalize(input, 1, self.power, self.eps)
        return self._conv_forward(features, weight, self.bias)
