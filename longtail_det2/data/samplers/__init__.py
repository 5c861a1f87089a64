"""Training samplers: which image comes next, as a pure function of (seed, number of ids drawn)."""

from longtail_det2.data.samplers.base import (
    SAMPLER_REGISTRY,
    TrainingSampler,
    UniformTrainingSampler,
    make_sampler,
    sampler_class,
)
from longtail_det2.data.samplers.phased import Phase, PhasedTrainingSampler, parse_phases, phases_of_run
from longtail_det2.data.samplers.repeat_factor import RepeatFactorTrainingSampler, repeat_factors
from longtail_det2.data.samplers.soft_balance import (
    ClassAwareTrainingSampler,
    ClassIndex,
    SoftBalanceTrainingSampler,
    soft_balance_probabilities,
)

__all__ = [
    "SAMPLER_REGISTRY",
    "ClassAwareTrainingSampler",
    "ClassIndex",
    "Phase",
    "PhasedTrainingSampler",
    "RepeatFactorTrainingSampler",
    "SoftBalanceTrainingSampler",
    "TrainingSampler",
    "UniformTrainingSampler",
    "make_sampler",
    "parse_phases",
    "phases_of_run",
    "repeat_factors",
    "sampler_class",
    "soft_balance_probabilities",
]
