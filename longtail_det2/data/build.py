"""Data sets, samplers and loaders, from parts (lazy configs, own scripts) or from a config (YAML)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import load_dataset
from longtail_det2.data.datasets.dataset import ConcatMultiLabelDataset, MultiLabelDataset
from longtail_det2.data.samplers import TrainingSampler, make_sampler, sampler_class, stages_of_run
from longtail_det2.data.training_stream import TrainingStream
from longtail_det2.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def get_dataset(names: str | Sequence[str], filter_empty: bool = False) -> Any:
    """Registered data sets as one map-style dataset.

    Args:
        names: one or several registered names. Stores must have the same class list.
        filter_empty: leave out images without objects.

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
        dataset: Any = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        return DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    if len(stores) < len(parts):
        kinds = ", ".join(f"{name} ({type(part).__name__})" for name, part in zip(names, parts, strict=True))
        raise DataError(f"annotation stores and other data sets cannot be joined: {kinds}")
    if filter_empty:
        stores = [part.filtered() for part in stores]
    result = stores[0] if len(stores) == 1 else ConcatMultiLabelDataset(stores, names)
    if len(result) == 0:
        raise DataError(
            f"no image is left in {', '.join(names)}" + (" with an object" if filter_empty else "")
        )
    return result


def build_sampler(
    sampler: str | type[TrainingSampler] | CfgNode, dataset: Any, *, seed: int, start: int = 0, **options: Any
) -> TrainingSampler:
    """Makes a training sampler for a dataset.

    Args:
        sampler: a name in `SAMPLER_REGISTRY`, a `TrainingSampler` class of your own, or a config, which gives
            the name (DATALOADER.SAMPLER_TRAIN), the sampler's options and the stages.
        dataset: what to sample from.
        seed: the same on all ranks.
        start: ids drawn before, over all ranks.
        **options: keyword arguments of the sampler's `from_dataset`.

    Raises:
        ConfigError: unknown name, no sampler class, an option that the sampler does not take, or stages for
            another sampler than `StagedTrainingSampler`.
    """
    if isinstance(sampler, CfgNode):
        chosen = sampler_class(sampler.DATALOADER.SAMPLER_TRAIN)
        stages_of_run(chosen, sampler.DATALOADER.STAGES)
        return make_sampler(
            chosen, dataset, seed=seed, start=start, **{**chosen.options_from_config(sampler), **options}
        )
    return make_sampler(sampler, dataset, seed=seed, start=start, **options)


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
    stages: Sequence[Any] = (),
) -> DataLoader[Any]:
    """Infinite loader of training batches, each a list of mapped images.

    Order, batches and augmentation are a function of `seed` and the number of images drawn: they do not
    depend on the number of workers, and `start` resumes exactly.

    Args:
        dataset: map-style dataset of records, or a list of them.
        mapper: record -> model input; may return None to reject an image.
        sampler: infinite image indices of this rank (a `TrainingSampler` brings its own `start`), or what
            `build_sampler` makes one from.
        total_batch_size: images per step over all ranks.
        aspect_ratio_grouping: landscape and other images come in different batches, which saves padding.
        num_workers: loading processes of this rank.
        seed: non-negative; None draws one that all ranks share.
        start: images drawn before, over all ranks (iterations x total batch size), for a sampler made here.
        sampler_options: further arguments of `build_sampler`, such as {"threshold": 0.001} of repeat factors.
        stages: of the sampler "StagedTrainingSampler", each [sampler, iterations] or [sampler, iterations,
            options].

    Raises:
        ConfigError: the batch does not divide by the number of ranks, options are given for a sampler that is
            already made, or stages for another one than "StagedTrainingSampler".
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
        if stages_of_run(sampler, stages):
            options |= {"stages": stages, "batch_size": total_batch_size}
        sampler = build_sampler(sampler, dataset, seed=seed, start=start, **options)
    elif start or sampler_options or len(stages):
        raise ConfigError(
            "start, sampler_options or stages is given, but the sampler is already made: pass them to the "
            "sampler"
        )
    batch_size = total_batch_size // world_size
    stream = TrainingStream(dataset, mapper, sampler, batch_size, seed, aspect_ratio_grouping)
    return DataLoader(
        stream, batch_size=batch_size, num_workers=num_workers, drop_last=True, collate_fn=_as_list
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

    Raises:
        DataError: the data set has no images.
    """
    if len(dataset) == 0:
        raise DataError("the test data set has no images")
    return DataLoader(
        _MappedDataset(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        drop_last=False,
        collate_fn=_as_list,
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
        dataset = get_dataset(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = build_sampler(cfg, dataset, seed=seed, start=start)
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


class _MappedDataset(Dataset[Any]):
    def __init__(self, dataset: Any, mapper: Callable[[Any], Any]) -> None:
        self._dataset, self._mapper = dataset, mapper

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._mapper(self._dataset[index])


def _as_list(items: list[Any]) -> list[Any]:
    return items
