"""The infinite stream of training images: which, in which batch, and with which random numbers.

Everything here is a function of (seed, number of images drawn), so the same images come in the same order, in
the same batches and with the same augmentation, however many workers load them and wherever training resumes.
"""

from __future__ import annotations

import copy
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

from longtail_det2.data.samplers.base import TrainingSampler
from longtail_det2.utils.errors import ConfigError, DataError

_ATTEMPTS = 20
"""Images tried before giving up, where the mapper rejects images by returning None."""

Draw = tuple[int, int]
"""(number of the draw over all ranks, image index)."""


class TrainingStream(IterableDataset[Any]):
    """Mapped training images of this rank, batch after batch.

    Inside worker w of W it yields the images of batches w, w + W, ...: a DataLoader with the same batch size
    then gives batch 0, 1, 2, ... in order. (Detectron2 deals out single images instead, so that its batches
    depend on the number of workers.)

    Where the sampler has stages, each stage's images are in its own batches: with `group_by_aspect`, those
    that are left at the end of a stage without a partner make up its last batch, landscape or not. They are
    always a whole batch, as a stage is a whole number of batches.

    Attributes:
        dataset: where records come from.
        sampler: where indices come from.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: Callable[[Any], Any],
        sampler: Iterable[int],
        batch_size: int,
        seed: int,
        group_by_aspect: bool = False,
    ) -> None:
        """Joins the parts.

        Args:
            dataset: map-style dataset of records.
            mapper: record -> model input, or None to reject the image (another one takes its place).
            sampler: infinite image indices of this rank; with a `TrainingSampler`, its `start` is honoured.
            batch_size: images per batch on this rank.
            seed: of the augmentations.
            group_by_aspect: put landscape and other images into different batches, which saves padding.

        Raises:
            ConfigError: a stage of the sampler, or with grouping its `start`, is no whole number of batches.
        """
        super().__init__()
        self.dataset, self.sampler = dataset, sampler
        self._mapper = mapper
        self._batch_size, self._seed = batch_size, seed
        self._group_by_aspect = group_by_aspect
        self._landscape: np.ndarray | None = None
        if group_by_aspect and hasattr(dataset, "image_sizes"):
            sizes = dataset.image_sizes
            self._landscape = sizes[:, 1] > sizes[:, 0]
        self._boundaries = self._checked_boundaries()

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in islice(self.batches(), first, None, step):
            for draw, index in batch:
                with _random_numbers((self._seed, draw), restore=worker is None):
                    item = self._load(index)
                yield item

    def batches(self) -> Iterator[list[Draw]]:
        """All batches of this rank, from the start of this run on."""
        if not self._group_by_aspect:
            draws = _number_draws(self.sampler)
            while batch := list(islice(draws, self._batch_size)):
                yield batch
            return
        # Which images wait for a partner depends on all draws of the stage before: replay them (indices only,
        # no images).
        sampler, done = self._from_the_stage()
        yield from islice(self._grouped(sampler), done, None)

    def _grouped(self, sampler: Iterable[int]) -> Iterator[list[Draw]]:
        waiting: tuple[list[Draw], list[Draw]] = ([], [])
        first = sampler.start if isinstance(sampler, TrainingSampler) else 0
        ends = iter([*(end for end in self._boundaries if end > first), math.inf])
        end = next(ends)
        for draw in _number_draws(sampler):
            if draw[0] >= end:
                end = next(ends)
                if rest := waiting[0] + waiting[1]:
                    yield rest
                waiting = ([], [])
            group = waiting[self._is_landscape(draw[1])]
            group.append(draw)
            if len(group) == self._batch_size:
                yield group[:]
                group.clear()

    def _is_landscape(self, index: int) -> bool:
        if self._landscape is not None:
            return bool(self._landscape[index])
        record = self.dataset[index]
        return record["width"] > record["height"]

    def _checked_boundaries(self) -> tuple[int, ...]:
        """The sampler's, after checking that its stages and its start are whole numbers of batches."""
        if not isinstance(self.sampler, TrainingSampler):
            return ()
        total = self._batch_size * self.sampler.world_size
        for boundary in self.sampler.boundaries:
            if boundary % total:
                raise ConfigError(
                    f"a stage of {self.sampler!r} ends after {boundary} images, which is no multiple of the "
                    f"total batch size {total}: make the sampler for this batch size"
                )
        if self._group_by_aspect and self.sampler.start % total:
            raise ConfigError(
                f"start={self.sampler.start} is no multiple of the total batch size {total}: with "
                "DATALOADER.ASPECT_RATIO_GROUPING, training resumes at whole batches only"
            )
        return self.sampler.boundaries

    def _from_the_stage(self) -> tuple[Iterable[int], int]:
        """The sampler from the beginning of its stage on, and how many batches of the stage are done."""
        sampler = self.sampler
        if not isinstance(sampler, TrainingSampler):
            return sampler, 0
        stage = bisect_right(self._boundaries, sampler.start)
        begin = self._boundaries[stage - 1] if stage else 0
        done = (sampler.start - begin) // (self._batch_size * sampler.world_size)
        sampler = copy.copy(sampler)
        sampler.start = begin
        return sampler, done

    def _load(self, index: int) -> Any:
        for _ in range(_ATTEMPTS):
            item = self._mapper(self.dataset[index])
            if item is not None:
                return item
            index = int(np.random.randint(len(self.dataset)))  # noqa: NPY002 - seeded for this draw
        raise DataError(f"the mapper rejected {_ATTEMPTS} images in a row (the last was number {index})")


def _number_draws(sampler: Iterable[int]) -> Iterator[Draw]:
    if isinstance(sampler, TrainingSampler):
        first, step = sampler.start + sampler.rank, sampler.world_size
    else:
        first, step = comm.get_rank(), comm.get_world_size()
    for count, index in enumerate(sampler):
        yield first + count * step, index


@contextmanager
def _random_numbers(seed: tuple[int, int], restore: bool) -> Iterator[None]:
    """Seeds the global generators that augmentations use: NumPy's, Python's and PyTorch's for the CPU.

    Args:
        seed: (seed, draw).
        restore: put the generators' states back afterwards. In a worker nobody else uses them; in the
            training process the model does.
    """
    cpu = torch.default_generator
    states = (np.random.get_state(), random.getstate(), cpu.get_state()) if restore else None  # noqa: NPY002
    # The spawn key keeps these numbers apart from the samplers', which are seeded with (seed, epoch).
    words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(3).tolist()
    np.random.seed(words[0])  # noqa: NPY002
    random.seed(words[1])
    cpu.manual_seed(words[2])
    try:
        yield
    finally:
        if states is not None:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])
            cpu.set_state(states[2])
