"""Concurrent rates in the state of a loss: found when they are first needed, kept by checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from longtail_det2.layers import concurrent_softmax_scores
from longtail_det2.utils.errors import ConfigError, DataError

from .base import ClassificationLoss
from .rates_of_run import NODE, Rates, RatesOfRun, checked_rates, no_rates

logger = logging.getLogger(__name__)

RatesSource: TypeAlias = "Rates | str | os.PathLike[str] | Callable[[], Rates] | None"
"""Rates, the path of a file of them, what gives them when called, or None: loaded weights must bring them."""


class HoldsRates(ClassificationLoss):
    """What losses that go by concurrent rates have in common.

    The rates P(j | i) are a buffer: checkpoints keep them, and rates in loaded weights go before those that
    the config names (``MODEL.RESET_WEIGHTS roi_heads.box_predictor.classification_loss`` takes the latter).
    The direction in which they are read is the config's. Training without rates is an error. Scores without
    rates, possible with weights of another loss only, are those of softmax, after a warning.
    """

    rates: Tensor
    rates_known: Tensor

    def hold_rates(self, num_classes: int, rates: RatesSource, direction: str) -> None:
        """Makes the buffers; to be called in ``__init__`` by a loss that needs rates in any form.

        Args:
            num_classes: K.
            rates: (K, K) array of P(j | i) or :class:`ConcurrentRates`; the path of a file of them or a
                function that gives them (:class:`RatesOfRun`), read or called when they are first needed; or
                None: loaded weights must bring them.
            direction: r_ij is P(j | i) for "given_row", P(i | j) for "given_column", the greater of both for
                "maximum".

        Raises:
            ConfigError: an unknown direction.
            DataError: `rates` is no matrix of K classes with values in [0, 1].
        """
        from longtail_det2.data.concurrent_rates import DIRECTIONS

        if direction not in DIRECTIONS:
            raise ConfigError(f"{NODE}.DIRECTION is {direction!r}; it must be one of {', '.join(DIRECTIONS)}")
        self.direction = direction
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

    def set_rates(self, rates: Rates) -> None:
        """Takes over the rates P(j | i); the diagonal of an array is not read.

        Raises:
            DataError: they are not of K classes, or not in [0, 1].
        """
        self.rates.copy_(torch.as_tensor(checked_rates(rates, len(self.rates))))
        self.rates_known.fill_(True)
        self._known = True

    def concurrent_scores(self, logits: Tensor) -> Tensor:
        """Scores of logits (R, K) or (R, K + 1), see :func:`concurrent_softmax_scores`."""
        if not self._known:
            self._find_rates_for_scores()
        return concurrent_softmax_scores(logits, self.read_rates())

    def find_rates(self) -> None:
        """Makes sure that there are rates, for training.

        Raises:
            ConfigError: there are none.
            DataError: they cannot be read or counted.
        """
        if self._known:
            self._compare_once()
            return
        if self._source is None:
            raise ConfigError(
                f"{no_rates(type(self).__name__)}: give it some, or load weights that were trained with it"
            )
        self.set_rates(self._source())
        self._compared = True
        count = int((self.rates > 0).sum())
        logger.info("Concurrent rates of %d classes, %d of them above 0", len(self.rates), count)

    def read_rates(self) -> Tensor:
        """(K, K) r_ij in the direction of the config."""
        if self.direction == "given_row":
            return self.rates
        turned = self.rates.T.contiguous()
        return turned if self.direction == "given_column" else torch.maximum(self.rates, turned)

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
            self.find_rates()
        except (ConfigError, DataError) as error:
            if self.training or self._is_explicit():
                raise
            self._warned = True
            logger.warning("The scores are those of plain softmax: %s", error)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loaded rates replace others, but weights without rates do not."""
        known = state_dict.get(f"{prefix}rates_known")
        if known is not None and not bool(known) and "rates" in self._buffers:
            own = {f"{prefix}rates": self.rates, f"{prefix}rates_known": self.rates_known}
            state_dict.update({name: value for name, value in own.items() if name in state_dict})
        super()._load_from_state_dict(state_dict, prefix, *args)
        if "rates" in self._buffers:
            self._known = bool(self.rates_known)
