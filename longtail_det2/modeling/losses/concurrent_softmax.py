"""Softmax loss and scores in which classes that occur together do not suppress each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError, DataError

from .base import CLASSIFICATION_LOSS_REGISTRY, at_least_float32
from .rates_of_run import NODE, Rates, RatesOfRun, checked_rates, no_rates
from .softmax_cross_entropy import SoftmaxCrossEntropyLoss

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy

logger = logging.getLogger(__name__)

FORMS = ("concurrent", "softmax")
DIRECTIONS = ("given_row", "given_column", "maximum")


@CLASSIFICATION_LOSS_REGISTRY.register()
class ConcurrentSoftmaxLoss(SoftmaxCrossEntropyLoss):
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

    The rates P(j | i) are a buffer: checkpoints keep them, and rates in loaded weights go before those that
    the config names (``MODEL.RESET_WEIGHTS roi_heads.box_predictor.classification_loss`` takes the latter).
    The direction in which they are read is the config's. Training without rates is an error. Scores without
    rates, possible with weights of another loss only, are those of softmax, after a warning.
    """

    rates: Tensor
    rates_known: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        rates: Rates | str | os.PathLike[str] | Callable[[], Rates] | None = None,
        direction: str = "given_row",
        train: str = "concurrent",
        test: str = "concurrent",
    ) -> None:
        """Makes the loss.

        Args:
            num_classes: K.
            rates: (K, K) array of P(j | i) or :class:`ConcurrentRates`; the path of a file of them or a
                function that gives them (:class:`RatesOfRun`), read or called when they are first needed; or
                None: loaded weights must bring them.
            direction: r_ij is P(j | i) for "given_row", P(i | j) for "given_column", the greater of both for
                "maximum".
            train: form of the loss, "concurrent" or "softmax".
            test: form of the scores, "concurrent" or "softmax".

        Raises:
            ConfigError: an unknown form or direction, or K is not positive.
            DataError: `rates` is no matrix of K classes with values in [0, 1].
        """
        super().__init__()
        for key, value, known in (
            ("TRAIN", train, FORMS),
            ("TEST", test, FORMS),
            ("DIRECTION", direction, DIRECTIONS),
        ):
            if value not in known:
                raise ConfigError(f"{NODE}.{key} is {value!r}; it must be one of {', '.join(known)}")
        if num_classes < 1:
            raise ConfigError(f"the loss needs at least one class, got num_classes={num_classes}")
        self.direction, self.train_form, self.test_form = direction, train, test
        self.register_buffer("rates", torch.zeros(num_classes, num_classes))
        self.register_buffer("rates_known", torch.tensor(False))
        self._known = False  # the same where reading it does not wait for the device
        self._compared = self._warned = False
        self._source: Callable[[], Rates] | None = None
        if isinstance(rates, (str, os.PathLike)):
            self._source = RatesOfRun(path=os.fspath(rates))
        elif callable(rates):
            self._source = cast("Callable[[], Rates]", rates)
        elif rates is not None:
            self._source = partial(checked_rates, rates, num_classes)
            self.set_rates(rates)

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

    def set_rates(self, rates: Rates) -> None:
        """Takes over the rates P(j | i); the diagonal of an array is not read.

        Raises:
            DataError: see the constructor.
        """
        self.rates.copy_(torch.as_tensor(checked_rates(rates, len(self.rates))))
        self.rates_known.fill_(True)
        self._known = True

    def activation(self, logits: Tensor) -> Tensor:
        """The scores of the test form; see :func:`concurrent_softmax_scores` and the contract."""
        if self.test_form == "softmax":
            return super().activation(logits)
        if not self._known:
            self._find_rates_for_scores()
        return concurrent_softmax_scores(logits, self._read_rates())

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
        self._find_rates()
        if self.train_form == "softmax":
            with torch.autocast(logits.device.type, enabled=False):
                return multi_label_softmax_loss(logits, labels)
        return concurrent_softmax_loss(logits, labels, self._read_rates())

    def _read_rates(self) -> Tensor:
        if self.direction == "given_row":
            return self.rates
        turned = self.rates.T.contiguous()
        return turned if self.direction == "given_column" else torch.maximum(self.rates, turned)

    def _find_rates(self) -> None:
        """Makes sure that there are rates, if a form needs them."""
        if self._known:
            self._compare_once()
        elif "concurrent" in (self.train_form, self.test_form):
            if self._source is None:
                raise ConfigError(f"{no_rates()}: give it some, or load weights that were trained with it")
            self.set_rates(self._source())
            self._compared = True
            count = int((self.rates > 0).sum())
            logger.info("Concurrent rates of %d classes, %d of them above 0", len(self.rates), count)

    def _compare_once(self) -> None:
        """Says so if loaded rates are used instead of those that were given."""
        if self._compared or self._source is None or not self._is_explicit():
            return
        self._compared = True
        given = torch.as_tensor(checked_rates(self._source(), len(self.rates)))
        if not torch.equal(given.to(self.rates), self.rates):
            logger.warning(
                "The loaded weights bring other concurrent rates than the config names, and theirs are used. "
                "For those of the config, add the name of this loss, such as "
                "roi_heads.box_predictor.classification_loss, to MODEL.RESET_WEIGHTS"
            )

    def _is_explicit(self) -> bool:
        """Whether rates were given or a file was named, instead of training data to count them in."""
        return self._source is not None and not (
            isinstance(self._source, RatesOfRun) and not self._source.path
        )

    def _find_rates_for_scores(self) -> None:
        """Finds rates if it can: a model with random weights and no data has scores, too, after a warning."""
        if self._warned:
            return
        try:
            self._find_rates()
        except (ConfigError, DataError) as error:
            if self.training or self._is_explicit():
                raise
            self._warned = True
            logger.warning("The scores are those of plain softmax: %s", error)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loaded rates replace others, but weights without rates do not."""
        known = state_dict.get(f"{prefix}rates_known")
        if known is not None and not bool(known):
            own = {f"{prefix}rates": self.rates, f"{prefix}rates_known": self.rates_known}
            state_dict.update({name: value for name, value in own.items() if name in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._known = bool(self.rates_known)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"train={self.train_form}, test={self.test_form}, direction={self.direction}"
