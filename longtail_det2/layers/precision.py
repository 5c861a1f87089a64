"""The floating type that losses and layers compute in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """`values` as float32 where they are narrower; float64 stays, so that gradients can be checked in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
