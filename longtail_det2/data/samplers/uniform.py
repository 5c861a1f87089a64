"""Every image equally often."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from typing_extensions import Self

from longtail_det2.data.samplers.base import SAMPLER_REGISTRY, TrainingSampler
from longtail_det2.utils.errors import DataError


@SAMPLER_REGISTRY.register()
class UniformTrainingSampler(TrainingSampler):
    """Each epoch is a permutation of the images."""

    def __init__(self, size: int, seed: int, start: int = 0, **ranks: Any) -> None:
        """For `size` images.

        Args:
            size: at least 1.
            seed: see `TrainingSampler`.
            start: see `TrainingSampler`.
            **ranks: `rank` and `world_size` of `TrainingSampler`.

        Raises:
            DataError: there is no image.
        """
        super().__init__(seed=seed, start=start, **ranks)
        if size < 1:
            raise DataError("the training data set has no images (all left out as empty?)")
        self.size = size

    @classmethod
    def from_dataset(cls, dataset: Sized, *, seed: int, start: int = 0, **options: Any) -> Self:
        """For all images of a dataset."""
        return cls(len(dataset), seed, start, **options)

    def epoch_size(self, epoch: int) -> int:
        """The number of images."""
        return self.size

    def locate(self, position: int) -> tuple[int, int]:
        """See `TrainingSampler.locate`; epochs have one size here."""
        epoch = position // self.size
        return epoch, epoch * self.size

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """A permutation of the images."""
        indices = np.arange(self.size, dtype=np.int32)
        self.generator(epoch).shuffle(indices)
        return indices
