"""Functions on tensors and layers; what keeps state, and heads and losses made of them, is in `modeling`."""

from .background_loss import FocalBackground, checked_kernels, focal_background_sum, triton_serves
from .concurrent_softmax import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from .deform_roi_pool import deform_roi_pool
from .distribution_balanced import (
    distribution_balanced_loss,
    negative_tolerant_bias,
    rebalanced_weights,
)
from .elementwise import asymmetric_loss, at_least_float32, focal_loss
from .normalized import NormalizedConv2d, NormalizedLinear, normalize
from .progressive_constraint import classification_constraint, matched_iou, progressive_constraint
from .seesaw import multi_label_seesaw_loss, seesaw_log_factors, seesaw_loss

__all__ = [
    "FocalBackground",
    "NormalizedConv2d",
    "NormalizedLinear",
    "asymmetric_loss",
    "at_least_float32",
    "checked_kernels",
    "classification_constraint",
    "concurrent_softmax_loss",
    "concurrent_softmax_scores",
    "deform_roi_pool",
    "distribution_balanced_loss",
    "focal_background_sum",
    "focal_loss",
    "matched_iou",
    "multi_label_seesaw_loss",
    "multi_label_softmax_loss",
    "negative_tolerant_bias",
    "normalize",
    "progressive_constraint",
    "rebalanced_weights",
    "seesaw_log_factors",
    "seesaw_loss",
    "triton_serves",
]
