r"""Cosine-normalized linear layers: a cosine similarity times a temperature.

Long-tail classifiers grow longer weight vectors for frequent classes, which then win by length alone; here
both features and weights have length 1. Wang et al. 2021 (Seesaw loss) use both layers with a temperature
tau of 20:

    y_j = tau < x / (|x|^power + eps), w_j / (|w_j|^power + eps) > + b_j
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


class NormalizedLinear(nn.Linear):
    """Linear layer of normalized features and weights; see the module.

    Under autocast the lengths are float32 and the product has autocast's type.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        temperature: float = 20.0,
        power: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        """Make the layer: weights N(0, 0.01), bias 0.

        Args:
            in_features: number of features.
            out_features: number of outputs.
            bias: add b.
            temperature: tau.
            power: of the lengths, see :func:`normalize`.
            eps: see :func:`normalize`.
        """
        self.temperature, self.power, self.eps = temperature, power, eps
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Set weights to N(0, 0.01) and the bias to 0."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight = normalize(self.weight, 1, self.power, self.eps)
        return F.linear(self.temperature * normalize(input, -1, self.power, self.eps), weight, self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, temperature={self.temperature}, power={self.power}"


class NormalizedConv2d(nn.Conv2d):
    """Convolution of features normalized per pixel and of normalized weights.

    A 1 x 1 convolution is :class:`NormalizedLinear` per pixel. The weights of a larger kernel are normalized
    over the input channels, per position of the kernel, or over the whole kernel.
    """

    def __init__(
        self,
        *args: Any,
        temperature: float = 20.0,
        power: float = 1.0,
        eps: float = 1e-6,
        norm_over_kernel: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make the layer: weights N(0, 0.01), bias 0.

        Args:
            args: of :class:`torch.nn.Conv2d`.
            temperature: tau.
            power: of the lengths, see :func:`normalize`.
            eps: see :func:`normalize`.
            norm_over_kernel: normalize weights over the whole kernel.
            kwargs: of :class:`torch.nn.Conv2d`.
        """
        self.temperature, self.power, self.eps = temperature, power, eps
        self.norm_over_kernel = norm_over_kernel
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        """Set weights to N(0, 0.01) and the bias to 0."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        weight = normalize(self.weight, (1, 2, 3) if self.norm_over_kernel else 1, self.power, self.eps)
        features = self.temperature * normalize(input, 1, self.power, self.eps)
        return self._conv_forward(features, weight, self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, temperature={self.temperature}, power={self.power}"
