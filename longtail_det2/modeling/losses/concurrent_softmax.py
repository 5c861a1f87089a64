"""Softmax loss and scores in which classes that occur together do not suppress each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import concurrent_softmax_loss, concurrent_softmax_scores, multi_label_softmax_loss
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .build import CLASSIFICATION_LOSS_REGISTRY
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

FORMS = ("concurrent", "softmax")
DIRECTIONS = ("given_row", "given_column", "maximum")


def checked_direction(direction: str) -> str:
    """Return `direction`; raises ConfigError if it is not one of ``DIRECTIONS``."""
    if direction not in DIRECTIONS:
        raise ConfigError(f"DIRECTION is {direction!r}; it must be one of {', '.join(DIRECTIONS)}")
    return direction


def directed_rates(rates: Tensor, direction: str) -> Tensor:
    """Return r_ij (K, K) in a direction of :class:`ConcurrentSoftmaxLoss`, from P(j | i)."""
    if direction == "maximum":
        return torch.maximum(rates, rates.T)
    return rates.T if direction == "given_column" else rates


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentSoftmaxLoss(SoftmaxCrossEntropyLoss):
    """Concurrent softmax (Peng et al. 2020) over the classes and background, for rows with several labels.

    ``loss_cls`` is that of :func:`concurrent_softmax_loss`: positives do not suppress each other, and a
    negative class j suppresses a positive class i only by 1 - r_ij, where r_ij is the rate at which objects
    of class i have class j as well. Ignored classes are left out. With one label per row, nothing ignored and
    rates of 0 it is cross entropy.

    Training and test form are chosen separately. The training form "softmax" is
    :func:`multi_label_softmax_loss`, the cross entropy that the paper starts from; unlike in
    :class:`SoftmaxCrossEntropyLoss` all labels of a row, ancestors too, are positives that share the
    probability, and ignored ones are left out. The test form "softmax" is the plain softmax.

    Checkpoints keep the rates P(j | i); the direction in which they are read is always that of the config.
    """

    config_node = "CONCURRENT_SOFTMAX"
    rates: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        rates: np.ndarray | Tensor | None = None,
        direction: str = "given_row",
        train: str = "concurrent",
        test: str = "concurrent",
    ) -> None:
        """Make the loss; L = K + 1.

        Args:
            num_classes: K.
            rates: (K, K) P(j | i) in [0, 1], see :meth:`ClassStatistics.rates`; the diagonal is not read.
                None: loaded weights must bring them.
            direction: r_ij is P(j | i) for "given_row", P(i | j) for "given_column", the larger of both for
                "maximum".
            train: form of the loss, "concurrent" or "softmax".
            test: form of the scores, "concurrent" or "softmax".

        Raises:
            ConfigError: an unknown form or direction, or `rates` is not a matrix of K classes with values in
                [0, 1].
        """
        super().__init__(num_classes=num_classes)
        for key, value in (("TRAIN", train), ("TEST", test)):
            if value not in FORMS:
                node = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX"
                raise ConfigError(f"{node}.{key} is {value!r}; it must be one of {', '.join(FORMS)}")
        self.train_form, self.test_form, self.direction = train, test, checked_direction(direction)
        self.hold("rates", rates, (num_classes, num_classes), at_most=1.0)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX``, and the rates from the statistics."""
        arguments = super().from_config(cfg, num_classes, statistics)
        return {**arguments, "rates": statistics and statistics.rates()}

    def scores(self, logits: Tensor) -> Tensor:
        """Scores of the test form; see :func:`concurrent_softmax_scores`."""
        if self.test_form == "softmax":
            return super().scores(logits)
        rates = directed_rates(self.held("rates"), self.direction)
        return concurrent_softmax_scores(self.checked(logits), rates)

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls``; see the class.

        Raises:
            ConfigError: a form needs rates and there are none; also where only the scores use them, since the
                checkpoint would have none.
        """
        logits = self.checked(logits, targets)
        if "concurrent" in (self.train_form, self.test_form):
            self.held("rates")
        if self.train_form == "softmax":
            losses = multi_label_softmax_loss(logits, targets.labels)
        else:
            rates = directed_rates(self.rates, self.direction)
            losses = concurrent_softmax_loss(logits, targets.labels, rates)
        return {"loss_cls": losses * targets.known}
