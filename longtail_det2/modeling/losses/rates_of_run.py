"""Where the co-occurrence rates of a training run come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtail_det2.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class RatesOfRun:
    """Rates of a file, or counted in the training data."""

    datasets: str | Sequence[str] = ()
    path: str = ""
    direction: str = "given_row"

    def __call__(self) -> np.ndarray | None:
        """(K, K), or None where the data are not here."""
        from longtail_det2.data.concurrent_rates import ConcurrentRates, concurrent_rates_of

        names = [self.datasets] if isinstance(self.datasets, str) else list(self.datasets)
        if self.path:
            return ConcurrentRates.load(self.path).read(self.direction)
        try:
            return concurrent_rates_of(names).read(self.direction) if names else None
        except (ConfigError, DataError, KeyError):
            return None


def resolved(rates: Any) -> Any:
    """The array."""
    return rates() if callable(rates) else rates
