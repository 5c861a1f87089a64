"""Data sets and loaders, from parts (lazy configs, own scripts) or from a config (YAML)."""

from __future__ import annotations

import copy
import logging
import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.build import (
    check_metadata_consistency,
    filter_images_with_only_crowd_annotations,
    trivial_batch_collator,
)
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import load_dataset
from longtail_det2.data.datasets.dataset import ConcatMultiLabelDataset, MultiLabelDataset
from longtail_det2.data.samplers import TrainingSampler, make_sampler, phases_of_run, sampler_class
from longtail_det2.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ATTEMPTS = 20
"""Images tried before giving up, where the mapper rejects images by returning None."""
Draw = tuple[int, int]
"""(number of the draw over all ranks, image index)."""


def get_dataset(names: str | Sequence[str], filter_empty: bool = False, image_level: bool = False) -> Any:
    """Join registered data sets to one map-style dataset.

    Args:
        names: one or several registered names. Stores must have the same class list.
        filter_empty: leave out images without objects.
        image_level: labels of stores are those of whole images, see `MultiLabelDataset`.

    Returns:
        A `MultiLabelDataset`, several of them joined, or (for data sets registered as lists of dicts, such as
        Detectron2's own) the serialised list.

    Raises:
        DataError: unknown name, absent store, stores mixed with lists, different class lists, or no image
            left.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("no data set is named: DATASETS.TRAIN or DATASETS.TEST is empty")
    parts = [load_dataset(name) for name in names]
    stores = [part for part in parts if isinstance(part, MultiLabelDataset)]
    if not stores:
        return _join_lists(names, parts, filter_empty)
    if len(stores) < len(parts):
        kinds = ", ".join(f"{name} ({type(part).__name__})" for name, part in zip(names, parts, strict=True))
        raise DataError(f"annotation stores and other data sets cannot be joined: {kinds}")
    if filter_empty or image_level:
        stores = [MultiLabelDataset(one.store, one.image_root, filter_empty, image_level) for one in stores]
    result = stores[0] if len(stores) == 1 else ConcatMultiLabelDataset(stores, names)
    if len(result) == 0:
        wanted = f" with {'a label' if image_level else 'an object'}" if filter_empty else ""
        if filter_empty and not image_level and any(one.store.form == "image_labels" for one in stores):
            wanted += (
                ": image labels train classifiers of images, MODEL.META_ARCHITECTURE MultiLabelClassifier "
                "with INPUT.IMAGE_LEVEL True"
            )
        raise DataError(f"no image is left in {', '.join(names)}{wanted}")
    return result


def _join_lists(names: Sequence[str], parts: Sequence[Any], filter_empty: bool) -> DatasetFromList:
    """Detectron2's `get_detection_dataset_dicts`, for lists that are loaded already."""
    if len(parts) > 1:
        check_metadata_consistency("thing_classes", names)
    records = list(chain.from_iterable(parts))
    if filter_empty and records and "annotations" in records[0]:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise DataError(f"no image is left in {', '.join(names)}")
    return DatasetFromList(records, copy=False)


def sampler_from_config(
    cfg: CfgNode, dataset: Any, *, seed: int, start: int = 0, **options: Any
) -> TrainingSampler:
    """Build the sampler that DATALOADER.SAMPLER_TRAIN names, with its keys and the phases.

    `options` take the place of the config's; for the other arguments, and errors, see :func:`make_sampler`.
    """
    chosen = sampler_class(cfg.DATALOADER.SAMPLER_TRAIN)
    phases_of_run(chosen, cfg.DATALOADER.PHASES)
    return make_sampler(
        chosen, dataset, seed=seed, start=start, **{**chosen.options_from_config(cfg), **options}
    )


def build_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[Any], Any],
    sampler: Iterable[int] | str | type[TrainingSampler] = "UniformTrainingSampler",
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: int | None = None,
    start: int = 0,
    sampler_options: Mapping[str, Any] | None = None,
    phases: Sequence[Any] = (),
) -> DataLoader[Any]:
    """Infinite loader of training batches, each a list of mapped images.

    Order, batches and augmentation are a function of `seed` and the number of images drawn: they do not
    depend on the number of workers, and `start` resumes exactly.

    Args:
        dataset: map-style dataset of records, or a list of them.
        mapper: record -> model input; may return None to reject an image.
        sampler: infinite image indices of this rank (a `TrainingSampler` brings its own `start`), or what
            `make_sampler` makes one from.
        total_batch_size: images per step over all ranks.
        aspect_ratio_grouping: landscape and other images come in different batches, which saves padding.
        num_workers: loading processes of this rank.
        seed: non-negative; None draws one that all ranks share.
        start: images drawn before, over all ranks (iterations x total batch size), for a sampler made here.
        sampler_options: further arguments of `make_sampler`, such as {"threshold": 0.001} of repeat factors.
        phases: of the sampler "PhasedTrainingSampler", each [sampler, iterations] or [sampler, iterations,
            options].

    Raises:
        ConfigError: the batch does not divide by the number of ranks, options are given for a sampler that is
            already made, or phases for another one than "PhasedTrainingSampler".
    """
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ConfigError(
            f"the total batch size (SOLVER.IMS_PER_BATCH) is {total_batch_size}; it must be a positive "
            f"multiple of the number of processes, {world_size}"
        )
    seed = comm.shared_random_seed() if seed is None else seed
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if isinstance(sampler, (str, type)):
        options = dict(sampler_options or {})
        if phases_of_run(sampler, phases):
            options |= {"phases": phases, "batch_size": total_batch_size}
        sampler = make_sampler(sampler, dataset, seed=seed, start=start, **options)
    elif start or sampler_options or len(phases):
        raise ConfigError(
            "start, sampler_options or phases is given, but the sampler is already made: pass them to the "
            "sampler"
        )
    batch_size = total_batch_size // world_size
    stream = TrainingStream(dataset, mapper, sampler, batch_size, seed, aspect_ratio_grouping)
    return DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        drop_last=True,
        collate_fn=trivial_batch_collator,
    )


def build_test_loader(
    dataset: Any, *, mapper: Callable[[Any], Any], num_workers: int = 0, batch_size: int = 1
) -> DataLoader[Any]:
    """Loader that gives each image of this rank's share once, in order.

    Args:
        dataset: map-style dataset of records, or a list of them.
        mapper: record -> model input.
        num_workers: loading processes of this rank.
        batch_size: images per step on this rank.
    """
    return DataLoader(
        MapDataset(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        drop_last=False,
        collate_fn=trivial_batch_collator,
    )


def build_train_loader_from_config(
    cfg: CfgNode, start: int = 0, *, mapper: Callable[[Any], Any] | None = None, dataset: Any = None
) -> DataLoader[Any]:
    """`build_train_loader` as a config describes it.

    Args:
        cfg: with this project's keys.
        start: images drawn before, over all ranks (iterations x SOLVER.IMS_PER_BATCH).
        mapper: instead of `MultiLabelDatasetMapper`.
        dataset: instead of DATASETS.TRAIN.
    """
    if dataset is None:
        dataset = get_dataset(
            cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.INPUT.IMAGE_LEVEL
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = sampler_from_config(cfg, dataset, seed=seed, start=start)
    logger.info("%d training images, sampled by %r", len(dataset), sampler)
    return build_train_loader(
        dataset,
        mapper=mapper or _mapper_from_config(cfg, is_train=True),
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=seed,
    )


def build_test_loader_from_config(
    cfg: CfgNode, dataset_name: str, *, mapper: Callable[[Any], Any] | None = None
) -> DataLoader[Any]:
    """`build_test_loader` of one registered data set, with the test augmentations of a config."""
    return build_test_loader(
        get_dataset(dataset_name),
        mapper=mapper or _mapper_from_config(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _mapper_from_config(cfg: CfgNode, is_train: bool) -> MultiLabelDatasetMapper:
    return MultiLabelDatasetMapper(**MultiLabelDatasetMapper.from_config(cfg, is_train))


class TrainingStream(IterableDataset[Any]):
    """Mapped training images of this rank, batch after batch.

    Order, batches and augmentation are a function of (seed, number of images drawn), however many workers
    load them and wherever training resumes. Inside worker w of W it yields the images of batches w, w + W,
    ...: a DataLoader with the same batch size then gives batch 0, 1, 2, ... in order.

    With `group_by_aspect`, images that are left at the end of a phase without a partner make up its last
    batch, landscape or not: a phase is a whole number of batches.

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
        """Join the parts.

        Args:
            dataset: map-style dataset of records.
            mapper: record -> model input, or None to reject the image. The next image that the sampler draws,
                which also keeps its own place, is used instead.
            sampler: infinite image indices of this rank; with a `TrainingSampler`, its `start` is honoured.
            batch_size: images per batch on this rank.
            seed: of the augmentations.
            group_by_aspect: put landscape and other images into different batches, which saves padding.

        Raises:
            ConfigError: a phase of the sampler, or with grouping its `start`, is no whole number of batches.
        """
        super().__init__()
        self.dataset, self.sampler = dataset, sampler
        self._mapper = mapper
        self._batch_size, self._seed = batch_size, seed
        self._group_by_aspect = group_by_aspect
        sizes = getattr(dataset, "image_sizes", None) if group_by_aspect else None
        self._landscape = None if sizes is None else sizes[:, 1] > sizes[:, 0]
        self._boundaries = self._checked_boundaries()

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        source, ahead = self.batches(), deque[list[Draw]]()

        def following() -> Iterator[int]:
            """Images of the batches after the current one, which stay in their own places."""
            for place in count():
                while place >= len(ahead):
                    ahead.append(next(source, []))
                yield from (index for _, index in ahead[place])

        for number in count():
            batch = ahead.popleft() if ahead else next(source, [])
            if not batch:
                return
            if number % step != first:
                continue
            spare = following()
            for draw, index in batch:
                with _random_numbers((self._seed, draw), restore=worker is None):
                    item = self._load(index, spare)
                yield item

    def batches(self) -> Iterator[list[Draw]]:
        """All batches of this rank, from the start of this run on."""
        if not self._group_by_aspect:
            draws = _number_draws(self.sampler)
            while batch := list(islice(draws, self._batch_size)):
                yield batch
            return
        # Which images wait for a partner depends on all draws of the phase before: replay their indices.
        sampler, done = self._from_the_phase()
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
        """The sampler's, after checking that its phases and its start are whole numbers of batches."""
        if not isinstance(self.sampler, TrainingSampler):
            return ()
        total = self._batch_size * self.sampler.world_size
        for boundary in self.sampler.boundaries:
            if boundary % total:
                raise ConfigError(
                    f"a phase of {self.sampler!r} ends after {boundary} images, which is no multiple of the "
                    f"total batch size {total}: make the sampler for this batch size"
                )
        if self._group_by_aspect and self.sampler.start % total:
            raise ConfigError(
                f"start={self.sampler.start} is no multiple of the total batch size {total}: with "
                "DATALOADER.ASPECT_RATIO_GROUPING, training resumes at whole batches only"
            )
        return self.sampler.boundaries

    def _from_the_phase(self) -> tuple[Iterable[int], int]:
        """The sampler from the beginning of its phase on, and how many batches of the phase are done."""
        sampler = self.sampler
        if not isinstance(sampler, TrainingSampler):
            return sampler, 0
        phase = bisect_right(self._boundaries, sampler.start)
        begin = self._boundaries[phase - 1] if phase else 0
        done = (sampler.start - begin) // (self._batch_size * sampler.world_size)
        sampler = copy.copy(sampler)
        sampler.start = begin
        return sampler, done

    def _load(self, index: int, spare: Iterator[int]) -> Any:
        """The mapped image, or the first of the next ones drawn that the mapper does not reject."""
        for place in islice(chain([index], spare), _ATTEMPTS):
            item = self._mapper(self.dataset[place])
            if item is not None:
                return item
        raise DataError(f"the mapper rejected {_ATTEMPTS} images in a row (the first was number {index})")


def _number_draws(sampler: Iterable[int]) -> Iterator[Draw]:
    if isinstance(sampler, TrainingSampler):
        first, step = sampler.start + sampler.rank, sampler.world_size
    else:
        first, step = comm.get_rank(), comm.get_world_size()
    for place, index in enumerate(sampler):
        yield first + place * step, index


@contextmanager
def _random_numbers(seed: tuple[int, int], restore: bool) -> Iterator[None]:
    """Seed the global generators that augmentations use: NumPy's, Python's and PyTorch's for the CPU.

    Args:
        seed: (seed, draw).
        restore: put the generators' states back afterwards, for the model in the same process.
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
