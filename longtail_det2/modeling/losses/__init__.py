"""Classification losses of regions; one class a file, all on the contract of :mod:`.base`."""

from .base import (
    CLASSIFICATION_LOSS_REGISTRY,
    ClassificationLoss,
    build_classification_loss,
    check_serves_dense_heads,
)
from .concurrent_softmax import ConcurrentSoftmaxLoss
from .rates_of_run import RatesOfRun
from .seesaw import SeesawLoss
from .sigmoid_bce import SigmoidBCELoss
from .sigmoid_focal import SigmoidFocalLoss
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "ClassificationLoss",
    "ConcurrentSoftmaxLoss",
    "RatesOfRun",
    "SeesawLoss",
    "SigmoidBCELoss",
    "SigmoidFocalLoss",
    "SoftmaxCrossEntropyLoss",
    "build_classification_loss",
    "check_serves_dense_heads",
]
