"""Seesaw losses beyond the paper: concurrent scores, focal objectness for dense heads, and both."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import concurrent_softmax_scores, focal_loss
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .build import CLASSIFICATION_LOSS_REGISTRY
from .concurrent_softmax import checked_direction, directed_rates
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
        if not (self.objectness and focal_alpha <= 1 and focal_gamma >= 0):
            raise ConfigError(
                "MODEL.CLASSIFICATION_LOSS.FOCAL_SEESAW.ALPHA must be at most 1 and GAMMA at least 0, got "
                f"{focal_alpha} and {focal_gamma}; SEESAW.OBJECTNESS must be True, got {self.objectness}"
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


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentSeesawLoss(SeesawLoss):
    """Seesaw loss whose class scores are :func:`concurrent_softmax_scores`.

    Labels that do not suppress each other in training rise together, and a softmax then splits the score
    among them. Here classes that occur together do not suppress each other in the test either. Where every
    rate is 0, as with one label per object, it is softmax.
    """

    @configurable
    def __init__(
        self, *, rates: np.ndarray | Tensor | None = None, direction: str = "given_row", **kwargs: Any
    ) -> None:
        """Make the loss; `rates` and `direction` as in :class:`ConcurrentSoftmaxLoss`, the rest as above.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(**kwargs)
        self.direction = checked_direction(direction)
        self.hold("rates", rates, (self.num_classes, self.num_classes), at_most=1.0)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``SEESAW`` and ``CONCURRENT_SEESAW`` of ``MODEL.CLASSIFICATION_LOSS``."""
        keys = cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SEESAW
        arguments = super().from_config(cfg, num_classes, statistics)
        return {**arguments, "rates": statistics and statistics.rates(), "direction": keys.DIRECTION}

    def class_scores(self, logits: Tensor) -> Tensor:
        """Concurrent scores of the classes; with background they sum to at least 1."""
        return concurrent_softmax_scores(logits, directed_rates(self.held("rates"), self.direction))

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute the losses of :class:`SeesawLoss`; raises ConfigError without rates for the scores."""
        self.held("rates")
        return super().unreduced(logits, targets)


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentFocalSeesawLoss(ConcurrentSeesawLoss, FocalSeesawLoss):
    """Both: concurrent scores and the focal objectness of dense heads."""
