"""Classification losses on the contract of :mod:`.base`."""

from .asymmetric import AsymmetricLoss
from .background import background_sums
from .base import (
    NORMALIZERS,
    ClassificationLoss,
    LossNormalizer,
    class_priors,
    is_recomputed,
    reduce_losses,
)
from .build import CLASSIFICATION_LOSS_REGISTRY, build_classification_loss
from .concurrent_softmax import ConcurrentSoftmaxLoss
from .distribution_balanced import DistributionBalancedLoss
from .guided import FrozenGuidedLossScaling, GuidedLossScaling, build_guided_loss
from .multi_focal import MultiFocalModifierLoss
from .seesaw import SeesawLoss
from .seesaw_variants import ConcurrentFocalSeesawLoss, ConcurrentSeesawLoss, FocalSeesawLoss
from .sigmoid import SigmoidBCELoss, SigmoidFocalLoss
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "NORMALIZERS",
    "AsymmetricLoss",
    "ClassificationLoss",
    "ConcurrentFocalSeesawLoss",
    "ConcurrentSeesawLoss",
    "ConcurrentSoftmaxLoss",
    "DistributionBalancedLoss",
    "FocalSeesawLoss",
    "FrozenGuidedLossScaling",
    "GuidedLossScaling",
    "LossNormalizer",
    "MultiFocalModifierLoss",
    "SeesawLoss",
    "SigmoidBCELoss",
    "SigmoidFocalLoss",
    "SoftmaxCrossEntropyLoss",
    "background_sums",
    "build_classification_loss",
    "build_guided_loss",
    "class_priors",
    "is_recomputed",
    "reduce_losses",
]
