"""Classification losses of regions; one class a file, all on the contract of :mod:`.base`."""

from .base import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss, build_classification_loss
from .sigmoid_bce import SigmoidBCELoss
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "ClassificationLoss",
    "SigmoidBCELoss",
    "SoftmaxCrossEntropyLoss",
    "build_classification_loss",
]
