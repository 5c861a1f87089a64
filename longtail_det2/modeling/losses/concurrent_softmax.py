"""Softmax loss and scores in which classes that occur together do not suppress each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32, concurrent_softmax_loss, multi_label_softmax_loss
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY
from .held_rates import HoldsRates, RatesSource
from .rates_of_run import NODE, RatesOfRun
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy

FORMS = ("concurrent", "softmax")


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentSoftmaxLoss(HoldsRates, SoftmaxCrossEntropyLoss):
    """Concurrent softmax (Peng et al. 2020) over the classes and background, for regions with several labels.

    ``loss_cls`` = (1 / R') sum_r L_r over the R' regions of class >= 0, as in
    :class:`SoftmaxCrossEntropyLoss`, with L_r of :func:`concurrent_softmax_loss`: positives do not suppress
    each other, and a negative class j suppresses a positive class i only by 1 - r_ij, where r_ij is the rate
    at which objects of class i bear class j as well. Ignored classes are left out. With one label a region,
    nothing ignored and rates of 0 it is cross entropy.

    Training and test form are chosen one by one. The training form "softmax" is
    :func:`multi_label_softmax_loss`, the cross entropy that the paper starts from: all labels of a region,
    ancestors too, are positives that share the probability. :class:`SoftmaxCrossEntropyLoss` is yet another:
    there the most specific label is the only positive, and all others, ignored ones too, are negatives. With
    one label and nothing ignored the two are equal. The test form "softmax" is the plain softmax.

    Where the rates come from and where they are kept: :class:`HoldsRates`.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        rates: RatesSource = None,
        direction: str = "given_row",
        train: str = "concurrent",
        test: str = "concurrent",
    ) -> None:
        """Makes the loss.

        Args:
            num_classes: K.
            rates: see :meth:`HoldsRates.hold_rates`.
            direction: see there.
            train: form of the loss, "concurrent" or "softmax".
            test: form of the scores, "concurrent" or "softmax".

        Raises:
            ConfigError: an unknown form or direction, or K is not positive.
            DataError: `rates` is no matrix of K classes with values in [0, 1].
        """
        super().__init__()
        for key, value in (("TRAIN", train), ("TEST", test)):
            if value not in FORMS:
                raise ConfigError(f"{NODE}.{key} is {value!r}; it must be one of {', '.join(FORMS)}")
        if num_classes < 1:
            raise ConfigError(f"the loss needs at least one class, got num_classes={num_classes}")
        self.train_form, self.test_form = train, test
        self.hold_rates(num_classes, rates, direction)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
    ) -> dict[str, Any]:
        """Reads ``MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX`` and ``DATASETS.TRAIN``."""
        keys = cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX
        return {
            "num_classes": num_classes,
            "rates": RatesOfRun(tuple(cfg.DATASETS.TRAIN), keys.RATES_FILE),
            "direction": keys.DIRECTION,
            "train": keys.TRAIN,
            "test": keys.TEST,
        }

    def activation(self, logits: Tensor) -> Tensor:
        """The scores of the test form; see :func:`concurrent_softmax_scores` and the contract."""
        if self.test_form == "softmax":
            return super().activation(logits)
        return self.concurrent_scores(logits)

    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """See the class and the contract; the one key is ``loss_cls``.

        Raises:
            ConfigError: a form needs rates and there are none.
            DataError: the rates cannot be read or counted.
        """
        losses = self._losses(logits, targets.labels)
        known = targets.classes >= 0
        return {"loss_cls": (losses * known).sum() / known.sum().clamp(min=1)}

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """The sum over the anchors of class >= 0, by `normalizer`, as ``loss_cls``.

        A background anchor has one label, and background concurs with nothing: its loss is cross entropy.
        """
        positives = self._losses(logits[targets.rows], F.pad(targets.labels, (0, 1)))
        with torch.autocast(logits.device.type, enabled=False):
            background = torch.where(targets.classes == targets.num_classes, targets.classes, -1)
            total = F.cross_entropy(at_least_float32(logits), background, ignore_index=-1, reduction="sum")
            return {"loss_cls": (total + positives.sum()) / normalizer}

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(R,) of the training form."""
        if "concurrent" in (self.train_form, self.test_form):
            self.find_rates()
        if self.train_form == "softmax":
            with torch.autocast(logits.device.type, enabled=False):
                return multi_label_softmax_loss(logits, labels)
        return concurrent_softmax_loss(logits, labels, self.read_rates())

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"train={self.train_form}, test={self.test_form}, direction={self.direction}"
