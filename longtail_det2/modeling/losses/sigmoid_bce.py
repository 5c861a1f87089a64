"""Binary cross entropy per class: the multi-label baseline that knows a hierarchy."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import focal_loss
from longtail_det2.structures.multi_label import IGNORED, POSITIVE, MultiLabelTargets

from .base import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss, class_priors


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
        self.alpha, self.gamma = -1.0, 0.0  # as a focal loss

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE``."""
        return {
            "num_classes": num_classes,
            "prior_prob": cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB,
        }

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

    def bias(self, prior: float | Tensor | None = None) -> Tensor:
        """log(p / (1 - p)) for the prior p of every class; None takes `prior_prob`."""
        prior = self.prior_prob if prior is None else prior
        return torch.logit(class_priors(prior, self.num_classes, shared=False)).float()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"num_classes={self.num_classes}, prior_prob={self.prior_prob}"
