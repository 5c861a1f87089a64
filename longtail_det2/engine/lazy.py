"""Training and evaluation from a lazy (Python) config: the twin of :mod:`.trainer`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, OmegaConf
from torch import nn

from longtail_det2.config_files import load_lazy
from longtail_det2.data.datasets.builtin import class_ids_of
from longtail_det2.data.samplers import phases_of_run
from longtail_det2.utils.errors import ConfigError

from .build import build_lazy_model
from .run import Parts, evaluate_model, load_for_evaluation, run
from .setup import lazy_dataset_names, setup_from_arguments


def do_test(
    cfg: DictConfig, model: nn.Module, evaluators: Mapping[str, DatasetEvaluator] | None = None
) -> dict[str, Any]:
    """Evaluate a model on ``dataloader.test`` with ``dataloader.evaluator``.

    Args:
        cfg: see :func:`build_parts`.
        model: with the weights to evaluate.
        evaluators: by test set; None builds them.

    Returns:
        The results of the one test set, or those of each by its name; {} on other processes than the main one
        and where the config has no evaluator.
    """
    results: dict[str, Any] = {}
    for name in _evaluated(cfg):
        test = cfg.dataloader.test.copy()
        test.dataset.names = name
        evaluator = _evaluator(cfg, name) if evaluators is None else evaluators[name]
        results[name] = evaluate_model(model, _made(test), evaluator, name)
    return next(iter(results.values())) if len(results) == 1 else results


def do_train(cfg: DictConfig, resume: bool = False) -> dict[str, Any]:
    """Train the model of a lazy config and evaluate it at the end.

    Args:
        cfg: from :func:`longtail_det2.engine.setup.setup`.
        resume: go on from the newest checkpoint of ``train.output_dir``, if there is one.

    Returns:
        Results of the last evaluation.
    """
    return run(build_parts(cfg), resume=resume)


def build_parts(cfg: DictConfig) -> Parts:
    """Return what the config describes; it comes from :func:`longtail_det2.engine.setup.setup`."""
    data, train, max_iter = cfg.dataloader.train, cfg.train, int(cfg.train.max_iter)
    phases = phases_of_run(data.get("sampler"), data.get("phases", ()), max_iter)
    model = build_lazy_model(cfg)
    cfg.optimizer.model = model
    optimizer = _made(cfg.optimizer)
    # What is wrong with an evaluation shows now, not when it is due.
    evaluators = {name: _evaluator(cfg, name) for name in _evaluated(cfg)}
    return Parts(
        model=model,
        class_ids=class_ids_of(lazy_dataset_names(cfg)[0][0]),
        optimizer=optimizer,
        scheduler=LRMultiplier(optimizer, _made(cfg.lr_multiplier), max_iter),
        build_loader=lambda start, seed: _train_loader(cfg, start, seed),
        batch_size=data.total_batch_size,
        max_iter=max_iter,
        evaluate=lambda model: do_test(cfg, model, evaluators),
        output_dir=train.output_dir,
        seed=train.seed,
        weights=train.init_checkpoint,
        reset_weights=train.get("reset_weights", ()),
        phases=phases,
        mixed_precision=train.amp.enabled,
        ddp=train.ddp,
        checkpoint_period=train.checkpointer.period,
        max_checkpoints=train.checkpointer.get("max_to_keep") or 0,
        eval_period=train.eval_period,
        log_period=train.log_period,
    )


def _evaluated(cfg: DictConfig) -> list[str]:
    """The test data sets, where there is an evaluator for them."""
    return lazy_dataset_names(cfg)[1] if "evaluator" in cfg.dataloader else []


def _evaluator(cfg: DictConfig, name: str) -> DatasetEvaluator:
    evaluator = cfg.dataloader.evaluator.copy()
    evaluator.dataset = name
    if evaluator.get("output_dir") is None:
        evaluator.output_dir = os.path.join(cfg.train.output_dir, "inference", name)
    return _made(evaluator)


def _made(node: DictConfig) -> Any:
    """What a lazy node describes; Detectron2's function has no types."""
    return instantiate(node)


def _train_loader(cfg: DictConfig, start: int, seed: int) -> Iterable[Any]:
    """``dataloader.train``, going on after `start` images, with the run's seed unless it has its own."""
    loader = cfg.dataloader.train.copy()
    described = OmegaConf.is_dict(loader.get("sampler"))  # such a sampler has its own start and seed
    for part in (loader, loader.sampler) if described else (loader,):
        own = part.get("seed")
        if own is None or own < 0 or own == cfg.train.seed:
            part.seed = seed
    (loader.sampler if described else loader).start = start
    return _made(loader)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or with ``--eval-only`` evaluate, as the command line says.

    Raises:
        ConfigError: see :func:`longtail_det2.engine.setup.setup`; or no config file is given.
        DataError: a data set is unknown or absent.
    """
    if not args.config_file:
        raise ConfigError("--config-file is missing: a lazy config has no defaults to fall back on")
    cfg = setup_from_arguments(load_lazy(args.config_file, args.opts), args)
    if not args.eval_only:
        return do_train(cfg, args.resume)
    names = _evaluated(cfg)
    if not names:
        raise ConfigError("--eval-only: the config has no dataloader.evaluator or no dataloader.test")
    model, train = build_lazy_model(cfg), cfg.train
    load_for_evaluation(
        model, train.init_checkpoint, train.output_dir, class_ids_of(names[0]), resume=args.resume
    )
    return do_test(cfg, model)
