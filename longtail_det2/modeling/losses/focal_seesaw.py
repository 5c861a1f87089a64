"""Seesaw loss for dense heads; not in the paper, which has two-stage detectors only."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import focal_loss
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY
from .seesaw import SeesawLoss


@CLASSIFICATION_LOSS_REGISTRY.register()
class FocalSeesawLoss(SeesawLoss):
    """Seesaw loss whose objectness is the focal loss of P(foreground), for heads with mostly background."""

    @configurable
    def __init__(self, *, focal_alpha: float = 0.25, focal_gamma: float = 2.0, **kwargs: Any) -> None:
        """Make the loss.

        Args:
            focal_alpha: weight of foreground in [0, 1], see :class:`SigmoidFocalLoss`; below 0: no weights.
            focal_gamma: exponent, 0 or more.
            kwargs: of :class:`SeesawLoss`; `objectness` must stay True.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(**kwargs)
        node = "MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW"
        if not (self.objectness and focal_alpha <= 1 and focal_gamma >= 0):
            raise ConfigError(
                f"{node}.ALPHA must be at most 1 and GAMMA at least 0, got {focal_alpha} and {focal_gamma}; "
                f"SEESAW.OBJECTNESS must be True, got {self.objectness}"
            )
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``SEESAW`` and ``FOCAL_SEESAW`` of ``MODEL.CLASSIFICATION_LOSS``."""
        keys = cfg.MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW
        arguments = super().from_config(cfg, num_classes, statistics)
        return {**arguments, "focal_alpha": keys.ALPHA, "focal_gamma": keys.GAMMA}

    def objectness_loss(self, logits: Tensor, foreground: Tensor) -> Tensor:
        """(R,) focal loss of P(foreground) (Lin et al. 2017, equation 5)."""
        return focal_loss(logits[:, 0] - logits[:, 1], foreground, self.focal_alpha, self.focal_gamma)
