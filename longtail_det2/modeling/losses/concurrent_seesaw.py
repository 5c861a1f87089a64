"""Seesaw loss with concurrent scores; not in the paper, whose data sets have one label per object."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import concurrent_softmax_scores
from longtail_det2.structures.multi_label import MultiLabelTargets

from .base import CLASSIFICATION_LOSS_REGISTRY
from .concurrent_softmax import checked_direction, directed_rates
from .focal_seesaw import FocalSeesawLoss
from .seesaw import SeesawLoss


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentSeesawLoss(SeesawLoss):
    """Seesaw loss whose class scores are :func:`concurrent_softmax_scores`.

    Labels that do not suppress each other in training rise together, and a softmax then splits the score
    among them. Here classes that occur together do not suppress each other in the test either. Where every
    rate is 0, as with one label per object, it is softmax.
    """

    rates: Tensor

    @configurable
    def __init__(
        self, *, rates: np.ndarray | Tensor | None = None, direction: str = "given_row", **kwargs: Any
    ) -> None:
        """Make the loss.

        Args:
            rates: see :class:`ConcurrentSoftmaxLoss`.
            direction: likewise.
            kwargs: of :class:`SeesawLoss`.

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
        """Compute the losses of :class:`SeesawLoss`.

        Raises:
            ConfigError: there are no rates for the scores.
        """
        self.held("rates")
        return super().unreduced(logits, targets)


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentFocalSeesawLoss(ConcurrentSeesawLoss, FocalSeesawLoss):
    """Both: concurrent scores and the focal objectness of dense heads."""
