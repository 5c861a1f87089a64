"""Means over seeds, their spread, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Student's t: half of the two-sided 95 % interval, in standard errors, by degrees of freedom 1, 2, ...
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: NaN without values.
        sd: standard deviation of the single values (n - 1 in the denominator); NaN for fewer than two.
        n: number of values.
    """

    mean: float
    sd: float
    n: int

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n) if self.n else math.nan

    @property
    def half_interval(self) -> float:
        """Half of the 95 % interval of the mean, by Student's t; NaN for fewer than two values."""
        return t95(self.n - 1) * self.se if self.n > 1 else math.nan

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval leaves 0 out."""
        return self.n > 1 and abs(self.mean) > self.half_interval


def t95(degrees: int) -> float:
    """Student's t at 97.5 %, within 0.001 from 1 degree of freedom on."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    return 1.95996 + 2.3722 / degrees + 2.8225 / degrees**2  # Cornish-Fisher


def mean_over_seeds(values: Mapping[int, float]) -> Mean:
    """Mean and spread of {seed: value}; values that are NaN are left out."""
    known = np.array([value for value in values.values() if not math.isnan(value)], dtype=float)
    if not len(known):
        return Mean(math.nan, math.nan, 0)
    sd = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return Mean(float(known.mean()), sd, len(known))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Mean:
    """Mean of the differences over the seeds that both have; its `se` is that of the mean difference."""
    return mean_over_seeds({seed: values[seed] - baseline[seed] for seed in values if seed in baseline})
