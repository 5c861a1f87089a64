"""The focal loss of dense detectors, for objects with several labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.layers import at_least_float32
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY
from .focal_sums import dense_focal_sum, focal_sum
from .sigmoid_bce import SigmoidBCELoss

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy


@CLASSIFICATION_LOSS_REGISTRY.register()
class SigmoidFocalLoss(SigmoidBCELoss):
    """K independent yes-or-no questions, of which those that are answered well already count little.

    With p_t the score given to the truth (Lin et al. 2017, equation 5):

        ``loss_cls`` = (1 / n) sum_r sum_k w_rk alpha_t (1 - p_t)^gamma (-log p_t)

    where w = 0 for ignored entries and 1 else. In a dense head n is the detector's normaliser, which makes it
    Detectron2's loss when every object has one label; elsewhere n is the number of foreground regions, at
    least 1. Logits, scores and bias are those of :class:`SigmoidBCELoss`.
    """

    @configurable
    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, prior_prob: float = 0.01) -> None:
        """Makes the loss.

        Args:
            alpha: weight of positive entries in [0, 1]; negative ones have 1 - `alpha`. Below 0: 1 for both.
            gamma: how fast well answered entries lose weight; 0 or more.
            prior_prob: score of every class before training, in (0, 1).

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(prior_prob=prior_prob)
        if alpha > 1.0 or gamma < 0.0:
            raise ConfigError(
                f"the focal loss needs alpha <= 1 and gamma >= 0, got alpha={alpha} and gamma={gamma} "
                "(MODEL.RETINANET.FOCAL_LOSS_ALPHA and FOCAL_LOSS_GAMMA)"
            )
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
    ) -> dict[str, Any]:
        """Reads Detectron2's keys in ``MODEL.RETINANET``, for every detector."""
        keys = cfg.MODEL.RETINANET
        return {
            "alpha": keys.FOCAL_LOSS_ALPHA,
            "gamma": keys.FOCAL_LOSS_GAMMA,
            "prior_prob": keys.PRIOR_PROB,
        }

    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """See the class and the contract; the one key is ``loss_cls``."""
        with torch.autocast(logits.device.type, enabled=False):
            truth = targets.labels[:, : targets.num_classes]
            total = focal_sum(at_least_float32(logits), truth, alpha=self.alpha, gamma=self.gamma)
            foreground = (targets.classes >= 0) & (targets.classes < targets.num_classes)
            return {"loss_cls": total / foreground.sum().clamp(min=1)}

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """See the class and the contract; the one key is ``loss_cls``."""
        with torch.autocast(logits.device.type, enabled=False):
            total = dense_focal_sum(at_least_float32(logits), targets, alpha=self.alpha, gamma=self.gamma)
            return {"loss_cls": total / normalizer}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"alpha={self.alpha}, gamma={self.gamma}, {super().extra_repr()}"
