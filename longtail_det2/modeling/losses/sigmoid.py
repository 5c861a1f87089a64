"""Binary cross entropy per class, the multi-label baseline that knows a hierarchy, and its focal form."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import FocalBackground, focal_loss
from longtail_det2.structures.multi_label import IGNORED, POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import ClassificationLoss, class_priors
from .build import CLASSIFICATION_LOSS_REGISTRY


@CLASSIFICATION_LOSS_REGISTRY.register()
class SigmoidBCELoss(ClassificationLoss):
    """K independent binary classifications per row.

    With labels y in {1, 0, -1} and weight w = [y != -1]:

        ``loss_cls`` = sum_k w_k BCE(sigmoid(z_k), [y_k = 1])

    The hierarchy is in the labels already: ancestors of a label are positive, descendants of the most
    specific label ignored (the treatment of UniDet, Zhou et al. 2022). A background row is negative for all
    classes. Divided by the number of rows this is Detectron2's sigmoid loss, and K times the mean that
    ``F.binary_cross_entropy_with_logits`` takes by default (normalizer "elements").
    """

    config_node = "SIGMOID_BCE"
    alpha, gamma = -1.0, 0.0  # as a focal loss

    @configurable
    def __init__(self, *, num_classes: int, prior_prob: float = 0.01) -> None:
        """Make the loss; L = K.

        Args:
            num_classes: K.
            prior_prob: score of every class before training in RoI heads, in (0, 1). Without it K negatives
                per row would make the first loss about K log 2 and the first steps useless (Lin et al. 2017,
                section 3.3).

        Raises:
            ConfigError: `prior_prob` is outside (0, 1).
        """
        super().__init__(num_classes, num_classes)
        class_priors(prior_prob, num_classes, shared=False)
        self.prior_prob = prior_prob

    def scores(self, logits: Tensor) -> Tensor:
        """Sigmoid of each logit, and 0 for background; rows do not sum to 1."""
        return F.pad(self.checked(logits).sigmoid(), (0, 1))

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls``; see the class."""
        logits, labels = self.checked(logits, targets), targets.labels[:, :-1]
        losses = focal_loss(logits, labels == POSITIVE, self.alpha, self.gamma)
        return {"loss_cls": losses.masked_fill(labels == IGNORED, 0).sum(dim=1)}

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_cls`` of rows that are all background."""
        sums = focal_loss(self.checked(logits), None, -1, self.gamma).sum(dim=1)
        return {"loss_cls": sums if self.alpha < 0 else (1.0 - self.alpha) * sums}

    def focal_background(self) -> FocalBackground:
        """Return the loss of background as numbers."""
        return FocalBackground(self.gamma, 1.0 if self.alpha < 0 else 1.0 - self.alpha)

    def bias(self, prior: float | Tensor | None = None) -> Tensor:
        """log(p / (1 - p)) for the prior p of every class; None takes `prior_prob`."""
        prior = self.prior_prob if prior is None else prior
        return torch.logit(class_priors(prior, self.num_classes, shared=False)).float()


@CLASSIFICATION_LOSS_REGISTRY.register()
class SigmoidFocalLoss(SigmoidBCELoss):
    """The focal loss of dense detectors (Lin et al. 2017, equation 5), for objects with several labels.

    With p_t the score given to the truth and w = 0 for ignored entries, else 1:

        ``loss_cls`` = sum_k w_k alpha_t (1 - p_t)^gamma (-log p_t)

    Dense heads divide it by their average number of positives, as Detectron2 does; in RoI heads set
    LOSS_NORMALIZER to "foreground".
    """

    @configurable
    def __init__(
        self, *, num_classes: int, alpha: float = 0.25, gamma: float = 2.0, prior_prob: float = 0.01
    ) -> None:
        """Make the loss; L = K.

        Args:
            num_classes: K.
            alpha: weight of positive entries in [0, 1]; negative ones have 1 - `alpha`. Below 0: 1 for both.
            gamma: how fast well classified entries lose weight; 0 or more.
            prior_prob: see :class:`SigmoidBCELoss`.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(num_classes=num_classes, prior_prob=prior_prob)
        if not (alpha <= 1.0 and gamma >= 0.0):
            raise ConfigError(
                f"the focal loss needs alpha <= 1 and gamma >= 0, got alpha={alpha} and gamma={gamma} "
                "(MODEL.RETINANET.FOCAL_LOSS_ALPHA and FOCAL_LOSS_GAMMA)"
            )
        self.alpha, self.gamma = alpha, gamma

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read Detectron2's keys in ``MODEL.RETINANET``, for every detector."""
        keys = cfg.MODEL.RETINANET
        return {
            "num_classes": num_classes,
            "alpha": keys.FOCAL_LOSS_ALPHA,
            "gamma": keys.FOCAL_LOSS_GAMMA,
            "prior_prob": keys.PRIOR_PROB,
        }
