"""Class-aware sampling (Shen et al., Relay Backpropagation, ECCV 2016): every class equally often."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from longtail_det2.data.samplers.base import SAMPLER_REGISTRY
from longtail_det2.data.samplers.class_index import ClassIndex
from longtail_det2.data.samplers.soft_balance import SoftBalanceTrainingSampler, index_classes


@SAMPLER_REGISTRY.register()
class ClassAwareTrainingSampler(SoftBalanceTrainingSampler):
    """Draws a class uniformly, then one of its images uniformly: soft-balance sampling with lambda = 1."""

    def __init__(
        self,
        index: ClassIndex,
        seed: int,
        start: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """For an index of images by class.

        Args:
            index: which images contain which class.
            seed: see `TrainingSampler`.
            start: see `TrainingSampler`.
            rank: see `TrainingSampler`.
            world_size: see `TrainingSampler`.

        Raises:
            DataError: no image has an object.
        """
        super().__init__(index, seed, start, lambda_=1.0, rank=rank, world_size=world_size)

    @classmethod
    def from_dataset(cls, dataset: Any, *, seed: int, start: int = 0, **options: Any) -> Self:
        """From a dataset or an annotation store; names classes without images in the log."""
        return cls(index_classes(dataset), seed, start, **options)

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """None: lambda is 1 here."""
        return {}

    def __repr__(self) -> str:
        return type(self).__name__
