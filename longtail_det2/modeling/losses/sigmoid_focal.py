"""The focal loss of dense detectors, for objects with several labels."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY
from .sigmoid_bce import SigmoidBCELoss


@CLASSIFICATION_LOSS_REGISTRY.register()
class SigmoidFocalLoss(SigmoidBCELoss):
    """K independent binary classifications per row, of which well classified ones count little.

    With p_t the score given to the truth (Lin et al. 2017, equation 5):

        ``loss_cls`` = sum_k w_k alpha_t (1 - p_t)^gamma (-log p_t)

    where w = 0 for ignored entries and 1 else. Dense heads divide it by their average number of positives, as
    Detectron2 does; in RoI heads set LOSS_NORMALIZER to "foreground". Logits, scores and bias are those of
    :class:`SigmoidBCELoss`.
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

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"alpha={self.alpha}, gamma={self.gamma}, {super().extra_repr()}"
