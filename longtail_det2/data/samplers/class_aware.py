"""Class-aware sampling (Shen et al., Relay Backpropagation, ECCV 2016): every class equally often."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import Self

from longtail_det2.data.datasets.dataset import labels_per_image
from longtail_det2.data.samplers.base import SAMPLER_REGISTRY, TrainingSampler
from longtail_det2.data.samplers.class_index import ClassIndex
from longtail_det2.utils.errors import DataError

_BLOCK = 1 << 16
"""Draws are independent, so an "epoch" is any fixed number of them; small ones make `start` cheap."""


@SAMPLER_REGISTRY.register()
class ClassAwareTrainingSampler(TrainingSampler):
    """Draws a class uniformly, then one of its images uniformly.

    Classes without images are never drawn. Labels count as annotated: ancestors are not added, so a hierarchy
    does not draw a frequent leaf class once more through each of its ancestors. Images without objects never
    appear.
    """

    def __init__(self, index: ClassIndex, seed: int, start: int = 0, **ranks: Any) -> None:
        """For an index of images by class.

        Args:
            index: which images contain which class.
            seed: see `TrainingSampler`.
            start: see `TrainingSampler`.
            **ranks: `rank` and `world_size` of `TrainingSampler`.

        Raises:
            DataError: no image has an object.
        """
        super().__init__(seed=seed, start=start, **ranks)
        counts = index.counts
        occurring = np.flatnonzero(counts)
        if len(occurring) == 0:
            raise DataError(
                "class-aware sampling needs objects, but no image of the training data set has one"
            )
        self._images = index.images
        self._first = index.offsets[occurring]
        self._counts = counts[occurring]

    @classmethod
    def from_dataset(cls, dataset: Any, *, seed: int, start: int = 0, **options: Any) -> Self:
        """From a dataset or an annotation store."""
        return cls(ClassIndex.build(*labels_per_image(dataset)), seed, start, **options)

    def epoch_size(self, epoch: int) -> int:
        """A fixed number of draws."""
        return _BLOCK

    def locate(self, position: int) -> tuple[int, int]:
        """See `TrainingSampler.locate`; epochs have one size here."""
        epoch = position // _BLOCK
        return epoch, epoch * _BLOCK

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """Independent draws."""
        generator = self.generator(epoch)
        classes = generator.integers(0, len(self._counts), size=_BLOCK)
        within = generator.integers(0, self._counts[classes])
        return self._images[self._first[classes] + within]
