"""Functions on tensors and layers; what keeps state, and heads and losses made of them, is in `modeling`."""

from .concurrent_softmax import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from .elementwise import at_least_float32, focal_loss
from .normalized import NormalizedConv2d, NormalizedLinear, normalize
from .seesaw import multi_label_seesaw_loss, seesaw_log_factors, seesaw_loss

__all__ = [
    "NormalizedConv2d",
    "NormalizedLinear",
    "at_least_float32",
    "concurrent_softmax_loss",
    "concurrent_softmax_scores",
    "focal_loss",
    "multi_label_seesaw_loss",
    "multi_label_softmax_loss",
    "normalize",
    "seesaw_log_factors",
    "seesaw_loss",
]
