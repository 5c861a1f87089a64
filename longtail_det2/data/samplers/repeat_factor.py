"""Repeat-factor sampling (Gupta et al., LVIS, CVPR 2019, appendix B.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import Self

from longtail_det2.data.datasets.dataset import labels_per_image
from longtail_det2.data.samplers.base import NO_IMAGES, SAMPLER_REGISTRY, TrainingSampler
from longtail_det2.data.samplers.soft_balance import ClassIndex
from longtail_det2.utils.errors import ConfigError, DataError


def repeat_factors(source: Any, threshold: float) -> np.ndarray:
    """How often an epoch holds each image, as Detectron2 computes it.

    With f(c) the share of images that contain class c: r(c) = max(1, sqrt(threshold / f(c))), and an image's
    factor is the largest r(c) of its classes (1 for images without objects). All labels of an object count,
    as annotated; images that `filter_empty` removed do not.

    Args:
        source: anything that `labels_per_image` takes: a dataset or an annotation store.
        threshold: frequency below which classes are repeated; positive.

    Raises:
        ConfigError: the threshold is not positive.

    Returns:
        (number of images,) float32, at least 1.
    """
    if threshold <= 0:
        raise ConfigError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}, which repeats nothing: set it to the frequency "
            "below which classes are repeated (0.001 is usual for LVIS)"
        )
    offsets, labels = labels_per_image(source)
    num_images = len(offsets) - 1
    counts = ClassIndex.build(offsets, labels).counts
    frequency = np.maximum(counts, 1) / max(num_images, 1)
    class_factors = np.maximum(1.0, np.sqrt(threshold / frequency)).astype(np.float32)
    factors = np.ones(num_images, dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        begin, end = int(offsets[0]), int(offsets[-1])
        per_label = class_factors[labels[begin:end]]
        factors[filled] = np.maximum.reduceat(per_label, offsets[filled] - begin)
    return factors


@SAMPLER_REGISTRY.register()
class RepeatFactorTrainingSampler(TrainingSampler):
    """Each epoch holds image i `floor(f_i)` times, and once more with probability `f_i - floor(f_i)`."""

    def __init__(self, factors: np.ndarray, seed: int, start: int = 0, **ranks: Any) -> None:
        """For images with given factors (n,), at least 1; the rest as in `TrainingSampler`.

        Raises:
            DataError: there are no images, or a factor is below 1.
        """
        super().__init__(seed=seed, start=start, **ranks)
        factors = np.asarray(factors, dtype=np.float32)
        if factors.ndim != 1 or len(factors) == 0:
            raise DataError(NO_IMAGES)
        if not (np.isfinite(factors).all() and factors.min() >= 1):
            raise DataError("repeat factors must be finite and at least 1")
        self._whole = np.floor(factors).astype(np.int32)
        self._fraction = factors - self._whole

    @classmethod
    def from_dataset(cls, dataset: Any, *, seed: int, start: int = 0, threshold: float = 0.001) -> Self:
        """Take the factors of a dataset's classes; `threshold` as in `repeat_factors`."""
        return cls(repeat_factors(dataset, threshold), seed, start)

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """`threshold` from DATALOADER.REPEAT_THRESHOLD."""
        return {"threshold": cfg.DATALOADER.REPEAT_THRESHOLD}

    def _repeats(self, generator: np.random.Generator) -> np.ndarray:
        extra = generator.random(len(self._fraction), dtype=np.float32) < self._fraction
        return self._whole + extra

    def epoch_size(self, epoch: int) -> int:
        """Number of ids; differs between epochs, as fractions are rounded at random."""
        return int(self._repeats(self.generator(epoch)).sum())

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """The images with their repeats, shuffled."""
        generator = self.generator(epoch)
        repeats = self._repeats(generator)
        indices = np.repeat(np.arange(len(repeats), dtype=np.int32), repeats)
        generator.shuffle(indices)
        return indices
