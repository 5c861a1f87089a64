"""What happens before a model is built: data sets, number of classes, device, logging, seed."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf

from longtail_det2.config import NUM_CLASSES_FROM_DATA, num_classes_key
from longtail_det2.data.datasets.builtin import class_ids_of, register_all, register_store
from longtail_det2.data.datasets.coco_cache import CocoEntry
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.wording import counted

from .build import register_components
from .config_files import find_config_file, load_cfg, load_lazy

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Everything between the command line and the model, for a YAML config.

    Args:
        args: from :func:`longtail_det2.engine.cli.parse_args`.

    Returns:
        The frozen config, its number of classes and device settled.

    Raises:
        ConfigError: see :func:`load_cfg` and :func:`settle_classes`.
        DataError: a data set is unknown or absent.
    """
    cfg = load_cfg(args.config_file, args.opts)
    register_components()
    register_datasets(cfg.DATASETS.ROOT, cfg.DATASETS.STORES)
    train, test = _needed(args.eval_only, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(settle_classes(train, test, cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="longtail_det2")
    default_setup(cfg, _with_path(args, ".yaml"))
    return cfg


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """The same for a lazy config.

    Raises:
        ConfigError: see :func:`load_lazy` and :func:`settle_classes`; or no config file is given.
        DataError: a data set is unknown or absent.
    """
    if not args.config_file:
        raise ConfigError("--config-file is missing: a lazy config has no defaults to fall back on")
    cfg = load_lazy(args.config_file, args.opts)
    register_components()
    datasets = cfg.get("datasets") or OmegaConf.create()
    register_datasets(datasets.get("root", ""), datasets.get("stores", ()))
    train, test = _needed(args.eval_only, *lazy_dataset_names(cfg))
    key = f"model.{num_classes_key(cfg.model)}"
    OmegaConf.update(cfg, key, len(settle_classes(train, test, OmegaConf.select(cfg, key))))
    cfg.train.device = available_device(cfg.train.device)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="longtail_det2")
    default_setup(cfg, _with_path(args, ".py"))
    return cfg


def _needed(
    eval_only: bool, train: Sequence[str], test: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """The data sets that a run reads: evaluation alone needs no training data."""
    if eval_only:
        train = ()
    if not (test if eval_only else train):
        key = "DATASETS.TEST (dataloader.test)" if eval_only else "DATASETS.TRAIN (dataloader.train)"
        raise ConfigError(f"no data set is named: {key}, in brackets the key of lazy configs, is empty")
    return train, test


def _with_path(args: argparse.Namespace, suffix: str) -> argparse.Namespace:
    """The arguments with a path where a name in the model zoo may stand, which Detectron2 does not know."""
    if not args.config_file:
        return args
    return argparse.Namespace(
        **{**vars(args), "config_file": str(find_config_file(args.config_file, suffix))}
    )


def register_datasets(root: str = "", stores: Sequence[str] = ()) -> None:
    """Registers the built-in data sets and the user's own.

    Args:
        root: folder of the built-in ones; "" takes $DETECTRON2_DATASETS, else "datasets".
        stores: "name=folder of an annotation store" each; the name may be a built-in one.

    Raises:
        ConfigError: an entry is not of that form, or its name stands for data that are no store.
    """
    own = dict(_parse_store(str(entry)) for entry in stores)
    image_roots = {name: _forget_store(name) for name in own}
    register_all(root or None)
    for name, path in own.items():
        _forget_store(name)
        known = image_roots[name]
        register_store(name, path, known[1] if known and known[0] == path else None)


def _parse_store(entry: str) -> tuple[str, str]:
    name, equals, path = (part.strip() for part in entry.partition("="))
    if not (name and equals and path):
        raise ConfigError(
            f"DATASETS.STORES: {entry!r} is not of the form name=folder, for example my_train=stores/train; "
            "or name=FILE.json:IMAGES for COCO-form annotations"
        )
    return name, path if CocoEntry.parse(path) else os.path.abspath(path)


def _forget_store(name: str) -> tuple[str, str | None] | None:
    """Makes room for a store under a name that means a store so far, such as a built-in one.

    Returns:
        The path and the image root that the name stood for, if it stood for a store.
    """
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    path = metadata.get("store_path")
    if path is None:
        return None
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    return path, metadata.get("image_root")


def settle_classes(train: Sequence[str], test: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Class identifiers that the model is about.

    Args:
        train: training data sets; the first one decides, or the first of `test` where there is none.
        test: test data sets; one of both must be named.
        num_classes: the config's number, or -1 to take the data's.

    Raises:
        ConfigError: the config's number is not the data's, or two data sets have different classes.
        DataError: a data set is unknown or absent.
    """
    first, *others = [*train, *test]
    class_ids = class_ids_of(first)
    for other in others:
        _check_equal_classes(first, class_ids, other, class_ids_of(other))
    if num_classes not in (NUM_CLASSES_FROM_DATA, len(class_ids)):
        raise ConfigError(
            f"the config says {counted(num_classes, 'class', 'classes')} (MODEL.ROI_HEADS.NUM_CLASSES; in a "
            "lazy config model.roi_heads.num_classes, of RetinaNet and FCOS model.num_classes), but data set "
            f"{first!r} has {len(class_ids)}. Set it to {len(class_ids)}, or to {NUM_CLASSES_FROM_DATA} to "
            "take the data set's number."
        )
    return class_ids


def frequency_counts(names: str | Sequence[str]) -> np.ndarray | None:
    """Images with a class or one of its descendants, over some data sets: what head and tail are made of.

    Returns:
        (K,) int64; None, with a line in the log, where a data set is absent or no annotation store.
    """
    names = [names] if isinstance(names, str) else list(names)
    try:
        stores = [getattr(DatasetCatalog.get(name), "store", None) for name in names]
    except (DataError, KeyError) as error:
        logger.warning("no head, medium and tail results: %s", error)
        return None
    if not stores or None in stores:
        return None
    return np.sum([store.image_counts(expanded=True) for store in stores if store is not None], axis=0)


def available_device(device: str) -> str:
    """`device`, or "cpu" with a line in the log where CUDA is asked for and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger("longtail_det2").warning("no CUDA device is available: using the CPU")
        return "cpu"
    return device


def lazy_dataset_names(cfg: DictConfig) -> tuple[list[str], list[str]]:
    """Names of the training and test data sets of a lazy config."""

    def names(key: str) -> list[str]:
        found: Any = OmegaConf.select(cfg, key)
        if found is None:
            return []
        return [found] if isinstance(found, str) else [str(name) for name in found]

    return names("dataloader.train.dataset.names"), names("dataloader.test.dataset.names")


def _check_equal_classes(name: str, ids: tuple[str, ...], other: str, other_ids: tuple[str, ...]) -> None:
    if len(ids) != len(other_ids):
        raise ConfigError(
            f"data set {name!r} has {counted(len(ids), 'class', 'classes')}, but {other!r} has "
            f"{len(other_ids)}: training and test data need the same classes in the same order"
        )
    for index, (one, two) in enumerate(zip(ids, other_ids, strict=True)):
        if one != two:
            raise ConfigError(
                f"class {index} is {one!r} in data set {name!r}, but {two!r} in {other!r}: training and test "
                "data need the same classes in the same order"
            )
