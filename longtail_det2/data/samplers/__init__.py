"""Training samplers: which image comes next, as a pure function of (seed, number of ids drawn)."""

from longtail_det2.data.samplers.base import SAMPLER_REGISTRY, TrainingSampler
from longtail_det2.data.samplers.class_aware import ClassAwareTrainingSampler
from longtail_det2.data.samplers.class_index import ClassIndex
from longtail_det2.data.samplers.repeat_factor import RepeatFactorTrainingSampler, repeat_factors
from longtail_det2.data.samplers.uniform import UniformTrainingSampler

__all__ = [
    "SAMPLER_REGISTRY",
    "ClassAwareTrainingSampler",
    "ClassIndex",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
    "UniformTrainingSampler",
    "repeat_factors",
]
