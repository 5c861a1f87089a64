"""Where the concurrent rates of a training run come from, and what is checked about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from longtail_det2.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from longtail_det2.data.concurrent_rates import ConcurrentRates

Rates: TypeAlias = "ConcurrentRates | np.ndarray | Tensor"
"""Given as an array: (K, K) P(j | i)."""

NODE = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX"
"""Of the config."""


@dataclass(frozen=True)
class RatesOfRun:
    """Where the rates of a training run come from; called when they are first needed.

    Counting takes seconds on large data, and a model is also built where there are no data: for published
    weights, for export, in tests.

    Attributes:
        datasets: of the training, registered by then.
        path: file of rates, which must be of the classes of `datasets`; "" counts them in `datasets`.
    """

    datasets: str | Sequence[str] = ()
    path: str = ""

    def __call__(self) -> ConcurrentRates:
        """Reads or counts the rates.

        Raises:
            ConfigError: there is neither a file nor a data set.
            DataError: the file cannot be used or is of other classes, or a data set cannot be used.
        """
        from longtail_det2.data.concurrent_rates import ConcurrentRates

        names = [self.datasets] if isinstance(self.datasets, str) else list(self.datasets)
        if self.path:
            rates = ConcurrentRates.load(self.path)
            _check_classes(rates, names)
            return rates
        if not names:
            raise ConfigError(f"{no_rates()}, and no training data set is named to count them in")
        return _counted(tuple((name, _store_of(name)) for name in names))


def checked_rates(rates: Rates, num_classes: int) -> np.ndarray:
    """(K, K) float32 P(j | i) with a diagonal of 0.

    Args:
        rates: the diagonal of an array is not read.
        num_classes: K.

    Raises:
        DataError: they are not of K classes, or not in [0, 1].
    """
    from longtail_det2.data.concurrent_rates import ConcurrentRates

    if not isinstance(rates, ConcurrentRates):
        values = np.array(torch.as_tensor(rates).detach().cpu(), dtype=np.float64)
        if values.ndim == 2:
            np.fill_diagonal(values, 0.0)
        rates = ConcurrentRates(values, tuple(f"class {index}" for index in range(num_classes)))
    if len(rates.class_ids) != num_classes:
        raise DataError(
            f"{rates.origin}: they are of {len(rates.class_ids)} classes, but the model has {num_classes}"
        )
    return rates.read()


def _check_classes(rates: ConcurrentRates, names: Sequence[str]) -> None:
    """Compares with the classes of the first data set, if that is here."""
    from longtail_det2.data.datasets.builtin import get_metadata

    try:
        metadata = get_metadata(names[0]) if names else None
    except DataError:
        return
    if metadata is not None:
        rates.check_classes(metadata.get("class_ids") or metadata.thing_classes, f"data set {names[0]!r}")


@functools.lru_cache(maxsize=1)
def _counted(stores: tuple[tuple[str, str | None], ...]) -> ConcurrentRates:
    """Rates of data sets, counted once for all stages of a cascade."""
    from longtail_det2.data.concurrent_rates import concurrent_rates_of

    return concurrent_rates_of([name for name, _ in stores])


def _store_of(name: str) -> str | None:
    """Folder of a data set's store, by which equal names of different data are told apart."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    return MetadataCatalog.get(name).get("store_path") if name in DatasetCatalog.list() else None


def no_rates(of: str = "the loss") -> str:
    """The beginning of a message."""
    return f"{of} has no concurrent rates ({NODE}.RATES_FILE names no file)"
