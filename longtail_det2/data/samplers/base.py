"""Training samplers: one infinite global stream of image indices, sliced over the ranks; uniform sampling.

Detectron2 runs the sampler inside every data-loading worker, so nothing outside can steer a running sampler.
A sampler here is therefore a pure function of (seed, number of ids drawn): epoch e's indices depend on
(seed, e) alone, every rank and worker makes the same epoch, and `start` continues anywhere in the stream.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.utils.data import Sampler
from typing_extensions import Self

from longtail_det2.utils.errors import ConfigError, DataError

SAMPLER_REGISTRY = Registry("TRAINING_SAMPLER")
"""Classes that `DATALOADER.SAMPLER_TRAIN` may name; add your own with `@SAMPLER_REGISTRY.register()`."""

NO_IMAGES = "the training data set has no images (all left out as empty?)"

_ALIASES = {"TrainingSampler": "UniformTrainingSampler"}
"""Detectron2's own name for uniform sampling."""

_YIELD_CHUNK = 4096
"""Indices turned into Python numbers at once: one list of an epoch would cost each worker tens of MB."""


class TrainingSampler(Sampler[int], ABC):
    """Infinite stream of image indices; rank r yields elements `start + r`, `start + r + world`, ...

    A subclass defines the indices of epoch e (`epoch_indices`) and how it is made for a dataset
    (`from_dataset`).

    Attributes:
        seed: non-negative, equal on all ranks.
        start: ids drawn before, over all ranks (iterations x total batch size), non-negative.
        rank, world_size: slice of the stream that this process takes.
        boundaries: positions of the stream at which a phase ends, ascending; no batch crosses them.
    """

    boundaries: tuple[int, ...] = ()

    def __init__(
        self, *, seed: int, start: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        """Take the slice of the current process where `rank` and `world_size` are None.

        Raises:
            ConfigError: a value is out of range.
        """
        self.seed = int(seed)
        self.start = int(start)
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if self.seed < 0 or self.start < 0 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"{type(self).__name__}: seed {self.seed} and start {self.start} must not be negative, "
                f"and rank {self.rank} must be below the number of processes {self.world_size}"
            )

    @classmethod
    @abstractmethod
    def from_dataset(cls, dataset: Any, *, seed: int, start: int = 0, **options: Any) -> Self:
        """Make the sampler for a dataset; subclasses name their options, and another one is an error."""

    @classmethod
    def options_from_config(cls, cfg: Any) -> dict[str, Any]:
        """Keyword arguments of `from_dataset` that a config holds; none unless overridden."""
        return {}

    @abstractmethod
    def epoch_indices(self, epoch: int) -> np.ndarray:
        """All ids of one epoch over all ranks: (epoch_size(epoch),) int32, a function of (seed, epoch)."""

    @abstractmethod
    def epoch_size(self, epoch: int) -> int:
        """Number of ids of one epoch, at least 1."""

    def generator(self, epoch: int) -> np.random.Generator:
        """Random numbers of one epoch."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))

    def locate(self, position: int) -> tuple[int, int]:
        """Epoch that holds an element of the stream, and the position at which that epoch begins."""
        epoch, begin = 0, 0
        while begin + (size := self.epoch_size(epoch)) <= position:
            begin += size
            epoch += 1
        return epoch, begin

    def draw_counts(self, begin: int, end: int, num_images: int) -> np.ndarray:
        """How often each image is drawn in positions `begin` to `end` - 1 of all ranks: (num_images,)."""
        counts = np.zeros(num_images, dtype=np.int64)
        epoch, first = self.locate(begin)
        while first < end:
            indices = self.epoch_indices(epoch)
            np.add.at(counts, indices[max(begin - first, 0) : end - first].astype(np.int64), 1)
            epoch, first = epoch + 1, first + len(indices)
        return counts

    def __repr__(self) -> str:
        return type(self).__name__

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        epoch, begin = self.locate(position)
        while True:
            indices = self.epoch_indices(epoch)
            size = len(indices)
            mine = indices[position - begin :: self.world_size].copy()
            del indices  # a rank of many need not hold the whole epoch
            for first in range(0, len(mine), _YIELD_CHUNK):
                yield from mine[first : first + _YIELD_CHUNK].tolist()
            position += len(mine) * self.world_size
            begin += size
            epoch += 1


@SAMPLER_REGISTRY.register()
class UniformTrainingSampler(TrainingSampler):
    """Each epoch is a permutation of the images."""

    def __init__(self, size: int, seed: int, start: int = 0, **ranks: Any) -> None:
        """For `size` images, the rest as in `TrainingSampler`; raises DataError where there are none."""
        super().__init__(seed=seed, start=start, **ranks)
        if size < 1:
            raise DataError(NO_IMAGES)
        self.size = size

    @classmethod
    def from_dataset(cls, dataset: Sized, *, seed: int, start: int = 0) -> Self:
        """Sample all images of a dataset."""
        return cls(len(dataset), seed, start)

    def epoch_size(self, epoch: int) -> int:
        """Number of images."""
        return self.size

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """A permutation of the images."""
        indices = np.arange(self.size, dtype=np.int32)
        self.generator(epoch).shuffle(indices)
        return indices


def sampler_class(sampler: str | type[TrainingSampler]) -> type[TrainingSampler]:
    """Class of a sampler that a config names, or the class itself.

    Raises:
        ConfigError: unknown name, or not a subclass of `TrainingSampler`.
    """
    if isinstance(sampler, str):
        name = _ALIASES.get(sampler, sampler)
        if name not in SAMPLER_REGISTRY:
            known = ", ".join(sorted(known for known, _ in SAMPLER_REGISTRY))
            raise ConfigError(
                f"unknown training sampler {sampler!r} (DATALOADER.SAMPLER_TRAIN, DATALOADER.PHASES); known "
                f"are {known}. Register your own with @SAMPLER_REGISTRY.register()"
            )
        sampler = SAMPLER_REGISTRY.get(name)
    if not (isinstance(sampler, type) and issubclass(sampler, TrainingSampler)):
        raise ConfigError(f"{sampler!r} is not a subclass of longtail_det2.data.samplers.TrainingSampler")
    return sampler


def make_sampler(
    sampler: str | type[TrainingSampler], dataset: Any, *, seed: int, start: int = 0, **options: Any
) -> TrainingSampler:
    """Make a sampler for a dataset.

    Args:
        sampler: a name in `SAMPLER_REGISTRY`, or a class.
        dataset: what to sample from.
        seed: see `TrainingSampler`.
        start: see `TrainingSampler`.
        **options: keyword arguments of the sampler's `from_dataset`.

    Raises:
        ConfigError: see `sampler_class`; or an option that the sampler does not take.
    """
    chosen = sampler_class(sampler)
    known = inspect.signature(chosen.from_dataset).parameters
    unknown = [name for name in options if name not in known]
    if unknown and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        raise ConfigError(
            f"{chosen.__name__} has no option {unknown[0]!r}; known: {', '.join(list(known)[1:])}"
        )
    return chosen.from_dataset(dataset, seed=seed, start=start, **options)
