"""From a config to what a model can be built of: data sets, classes, device, logs, seed; the run's record."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from longtail_det2.config import NUM_CLASSES_FROM_DATA, num_classes_key
from longtail_det2.data.datasets.builtin import class_ids_of, register_datasets
from longtail_det2.data.datasets.dataset import check_same_classes
from longtail_det2.data.statistics import compute_statistics, read_statistics, write_statistics
from longtail_det2.modeling.anchor_priors import (
    anchor_settings,
    forget_measured_prior,
    has_measured_prior,
)
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.wording import pluralize

from .anchor_statistics import measure_anchors
from .run_record import read_run_record, write_run_record

logger = logging.getLogger(__name__)

_LOGGERS = ("fvcore", "detectron2", "longtail_det2")
_MARK = "_SET_UP_IN"
"""Attribute of a YAML config that is set up: its folder."""
_handlers: list[tuple[logging.Logger, logging.Handler]] = []
"""Handlers of the run that this process logs."""


def setup(
    cfg: Any,
    output_dir: str = "",
    *,
    eval_only: bool = False,
    resume: bool = False,
    config_file: str = "",
    options: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Make a config ready for training: everything between reading it and building the model.

    Registers the data sets, takes the number of classes from them, falls back to the CPU where there is no
    CUDA, draws a seed if there is none, and begins the run's folder: config.yaml, log.txt, run.json and, of a
    YAML config that names no class statistics, statistics.json. Replaces SEESAW.LABELS "auto" of a YAML
    config by what fits the data.

    Args:
        cfg: YAML config (`CfgNode`) or lazy config (`DictConfig`); not changed.
        output_dir: folder of the run; "" takes the config's.
        eval_only: the training data are not needed.
        resume: the run goes on, with the seed that it had.
        config_file: for run.json, see :func:`write_run_record`; likewise the others.
        options: of the command line.
        arguments: of the command line.

    Returns:
        A changed copy; a YAML config is frozen.

    Raises:
        ConfigError: no data set is named, or see :func:`resolve_num_classes`.
        DataError: a data set is unknown or absent, or class statistics are of other classes.
    """
    form = _Form(cfg)
    if output_dir:
        form.set("output_dir", output_dir)
    output_dir = str(form.get("output_dir"))
    register_datasets(form.get("root") or "", form.get("stores") or ())
    train, test = form.names("train"), form.names("test")
    if not (test if eval_only else train):
        key = "DATASETS.TEST (dataloader.test)" if eval_only else "DATASETS.TRAIN (dataloader.train)"
        raise ConfigError(f"no data set is named: {key}, in brackets the key of lazy configs, is empty")
    class_ids = resolve_num_classes(() if eval_only else train, test, form.get("num_classes"))
    form.set("num_classes", len(class_ids))
    device = available_device(form.get("device"))
    fell_back = device != form.get("device")
    form.set("device", device)
    form.set("seed", _seed(form.get("seed"), output_dir, resume))
    start_logging(output_dir)
    if fell_back:
        logger.warning("no CUDA device is available: using the CPU")
    if not form.lazy:  # lazy configs name functions of longtail_det2.data.statistics
        if eval_only:
            forget_measured_prior(form.cfg)
        path = _statistics_file(form, train, output_dir, eval_only, resume)
        form.set("statistics", path)
        statistics = read_statistics(path, class_ids) if path else None
        if statistics and form.get("seesaw_labels") == "auto":
            form.set("seesaw_labels", statistics.seesaw_labels)
        form.cfg.freeze()
        vars(form.cfg)[_MARK] = output_dir
    default_setup(form.cfg, argparse.Namespace(config_file="", eval_only=eval_only, opts=list(options)))
    if comm.is_main_process():
        write_run_record(
            output_dir,
            config_file=config_file or vars(cfg).get("_CONFIG_FILE", ""),
            options=options,
            arguments=arguments,
            seed=form.get("seed"),
        )
    return form.cfg


def setup_from_arguments(cfg: Any, args: argparse.Namespace) -> Any:
    """:func:`setup` with what a command line of :func:`longtail_det2.cli.run.parse_args` says."""
    known = {key: value for key, value in vars(args).items() if key not in ("opts", "config_file")}
    return setup(
        cfg,
        eval_only=args.eval_only,
        resume=args.resume,
        config_file=args.config_file,
        options=args.opts,
        arguments=known,
    )


def is_set_up(cfg: CfgNode) -> bool:
    """Whether a YAML config is one that :func:`setup` returned, and its folder still the same."""
    return vars(cfg).get(_MARK) == cfg.OUTPUT_DIR


def start_logging(output_dir: str) -> None:
    """Send log lines to the console and to log.txt of a folder, and no longer to that of an earlier run."""
    while _handlers:
        name, handler = _handlers.pop()
        name.removeHandler(handler)
    setup_logger.cache_clear()
    for name in _LOGGERS:
        target = logging.getLogger(name)
        before = list(target.handlers)
        # With the arguments of default_setup, whose own calls then find that it is done.
        other = {} if name == "detectron2" else {"name": name}
        setup_logger(output_dir, distributed_rank=comm.get_rank(), **other)
        _handlers.extend((target, one) for one in target.handlers if one not in before)


_KEYS = {
    "output_dir": ("OUTPUT_DIR", "train.output_dir"),
    "root": ("DATASETS.ROOT", "datasets.root"),
    "stores": ("DATASETS.STORES", "datasets.stores"),
    "train": ("DATASETS.TRAIN", "dataloader.train.dataset.names"),
    "test": ("DATASETS.TEST", "dataloader.test.dataset.names"),
    "num_classes": ("MODEL.ROI_HEADS.NUM_CLASSES", ""),
    "device": ("MODEL.DEVICE", "train.device"),
    "seed": ("SEED", "train.seed"),
    "statistics": ("DATASETS.STATISTICS", ""),
    "seesaw_labels": ("MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS", ""),
}
"""What :func:`setup` reads and sets: (YAML key, lazy key)."""


class _Form:
    """A copy of a YAML or a lazy config, read and changed by the names in `_KEYS`."""

    def __init__(self, cfg: Any) -> None:
        self.lazy = isinstance(cfg, DictConfig)
        self.cfg: Any = cfg.copy() if self.lazy else cfg.clone()
        if not self.lazy:
            self.cfg.defrost()

    def _path(self, name: str) -> list[str]:
        if self.lazy and name == "num_classes":
            return f"model.{num_classes_key(self.cfg.model)}".split(".")
        return _KEYS[name][self.lazy].split(".")

    def get(self, name: str) -> Any:
        return reduce(lambda node, part: None if node is None else node.get(part), self._path(name), self.cfg)

    def set(self, name: str, value: Any) -> None:
        *parents, last = self._path(name)
        reduce(getitem, parents, self.cfg)[last] = value

    def names(self, which: str) -> list[str]:
        found = self.get(which) or ()
        return [found] if isinstance(found, str) else [str(name) for name in found]


def _seed(seed: int | None, output_dir: str, resume: bool) -> int:
    """The config's seed, else that of the run that is resumed, else a random one that all processes share."""
    if seed is not None and seed >= 0:
        return seed
    known, drawn = read_run_record(output_dir).get("seed") if resume else None, comm.shared_random_seed()
    return comm.all_gather(known if isinstance(known, int) else drawn)[0]


def resolve_num_classes(train: Sequence[str], test: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return the class identifiers of the data, and check the config's number against them.

    Args:
        train: training data sets; the first one decides, or the first of `test` where there is none.
        test: test data sets; one of both must be named.
        num_classes: the config's number, or -1 to take the data's.

    Raises:
        ConfigError: the config's number is not the data's.
        DataError: a data set is unknown or absent, or two have different classes.
    """
    first, *others = [*train, *test]
    class_ids = class_ids_of(first)
    for other in others:
        check_same_classes(class_ids, class_ids_of(other), f"data set {first!r}", repr(other))
    if num_classes not in (NUM_CLASSES_FROM_DATA, len(class_ids)):
        raise ConfigError(
            f"the config says {pluralize(num_classes, 'class', 'classes')} (MODEL.ROI_HEADS.NUM_CLASSES; in "
            "a lazy config model.roi_heads.num_classes, of RetinaNet and FCOS model.num_classes), but data "
            f"set {first!r} has {len(class_ids)}. Set it to {len(class_ids)}, or to {NUM_CLASSES_FROM_DATA} "
            "to take the data set's number."
        )
    return class_ids


def _statistics_file(
    form: _Form, names: Sequence[str], output_dir: str, eval_only: bool, resume: bool
) -> str:
    """Path of the run's class statistics, which the main process computes where no file is named.

    Raises DataError where they cannot be computed.
    """
    path = form.get("statistics")
    if not path:
        path, problem = os.path.join(output_dir, "statistics.json"), ""
        try:
            if has_measured_prior(form.cfg):
                _count_anchors(form.cfg, path, resume)
            elif comm.is_main_process() and not (eval_only and os.path.isfile(path)):
                write_statistics(path, compute_statistics(names, form.cfg.INPUT.IMAGE_LEVEL))
        except (ConfigError, DataError) as error:
            problem = str(error)
        problem = next(filter(None, comm.all_gather(problem)), "")  # all processes stop, or go on, together
        if problem and not eval_only:
            raise DataError(problem)
        if problem and not os.path.isfile(path):
            logger.warning("no class statistics, so no head, medium and tail results: %s", problem)
            return ""
    return path


def _count_anchors(cfg: CfgNode, path: str, resume: bool) -> None:
    """Write class statistics with anchors, unless a run that is resumed has them already."""
    known = read_statistics(path).anchors if resume and os.path.isfile(path) else None
    if comm.all_gather(known is not None and known.settings == anchor_settings(cfg))[0]:
        return
    logger.info("counting the anchors of an epoch for the measured prior, into %s", path)
    statistics = measure_anchors(cfg, progress=sys.stderr.isatty() and comm.is_main_process())
    if comm.is_main_process():
        write_statistics(path, statistics)


def available_device(device: str) -> str:
    """Return `device`, or "cpu" where CUDA is asked for and there is none."""
    return "cpu" if device.startswith("cuda") and not torch.cuda.is_available() else device


def lazy_dataset_names(cfg: DictConfig) -> tuple[list[str], list[str]]:
    """Return the names of the training and test data sets of a lazy config."""
    form = _Form(cfg)
    return form.names("train"), form.names("test")
