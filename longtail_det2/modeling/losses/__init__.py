"""Classification losses, one class per file, on the contract of :mod:`.base`."""

from .base import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss, build_classification_loss
from .concurrent_seesaw import ConcurrentFocalSeesawLoss, ConcurrentSeesawLoss
from .concurrent_softmax import ConcurrentSoftmaxLoss
from .focal_seesaw import FocalSeesawLoss
from .reduction import NORMALIZERS, LossNormalizer, dense_unreduced, reduce_losses
from .seesaw import SeesawLoss
from .sigmoid_bce import SigmoidBCELoss
from .sigmoid_focal import SigmoidFocalLoss
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "NORMALIZERS",
    "ClassificationLoss",
    "ConcurrentFocalSeesawLoss",
    "ConcurrentSeesawLoss",
    "ConcurrentSoftmaxLoss",
    "FocalSeesawLoss",
    "LossNormalizer",
    "SeesawLoss",
    "SigmoidBCELoss",
    "SigmoidFocalLoss",
    "SoftmaxCrossEntropyLoss",
    "build_classification_loss",
    "dense_unreduced",
    "reduce_losses",
]
