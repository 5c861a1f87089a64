"""Functions on tensors and layers; what keeps state, and heads and losses made of them, is in `modeling`."""

from .concurrent_softmax import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from .deform_roi_pool import deform_roi_pool
from .elementwise import at_least_float32, focal_loss
from .normalized import NormalizedConv2d, NormalizedLinear, normalize
from .progressive_constraint import classification_constraint, matched_iou, progressive_constraint
from .seesaw import multi_label_seesaw_loss, seesaw_log_factors, seesaw_loss

__all__ = [
    "NormalizedConv2d",
    "NormalizedLinear",
    "at_least_float32",
    "classification_constraint",
    "concurrent_softmax_loss",
    "concurrent_softmax_scores",
    "deform_roi_pool",
    "focal_loss",
    "matched_iou",
    "multi_label_seesaw_loss",
    "multi_label_softmax_loss",
    "normalize",
    "progressive_constraint",
    "seesaw_log_factors",
    "seesaw_loss",
]
