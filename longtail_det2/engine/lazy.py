"""Training and evaluation from a lazy (Python) config: the twin of :mod:`.trainer`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import Any

from detectron2.config import instantiate
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.config_files import load_lazy
from longtail_det2.data.datasets.builtin import class_ids_of
from longtail_det2.data.samplers import stages_of_run
from longtail_det2.utils.errors import ConfigError

from .activation_checkpoint import checkpoint_activations
from .build import build_lazy_model
from .gradient_log import ClassGradients
from .sampling_log import SamplingLog
from .setup import lazy_dataset_names, setup_from_arguments
from .training import default_hooks, distribute, evaluate_model, prepare_start
from .training_step import ResumableLoader, make_training_step


def do_test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Evaluates a model on ``dataloader.test`` with ``dataloader.evaluator``.

    Returns:
        The results of the one test set, or those of each by its name; {} on other processes than the main one
        and where the config has no evaluator.
    """
    results: dict[str, Any] = {}
    for name in _evaluated(cfg):
        test = cfg.dataloader.test.copy()
        test.dataset.names = name
        results[name] = evaluate_model(model, _made(test), _evaluator(cfg, name), name)
    return next(iter(results.values())) if len(results) == 1 else results


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


def do_train(cfg: DictConfig, resume: bool = False) -> dict[str, Any]:
    """Trains the model of a lazy config and evaluates it at the end.

    Args:
        cfg: from :func:`longtail_det2.engine.setup.setup_from_arguments`.
        resume: go on from the newest checkpoint of ``train.output_dir``, if there is one.

    Returns:
        Results of the last evaluation.
    """
    data, max_iter = cfg.dataloader.train, int(cfg.train.max_iter)
    stages = stages_of_run(data.get("sampler"), data.get("stages", ()), max_iter)
    sampling_log = SamplingLog(cfg.train.output_dir, stages, max_iter, data.total_batch_size)
    model = build_lazy_model(cfg)
    checkpoint_activations(model, cfg.train.get("activation_checkpoint", ()))
    class_ids = class_ids_of(lazy_dataset_names(cfg)[0][0])
    logs: list[HookBase | None] = [sampling_log]
    if cfg.train.get("log_class_gradients", False):
        logs.append(ClassGradients(model, class_ids, cfg.train.output_dir))
    cfg.optimizer.model = model
    optimizer = _made(cfg.optimizer)
    seed = int(cfg.train.get("seed", -1))
    loader = ResumableLoader(
        lambda start, seed: sampling_log.watch(_train_loader(cfg, start, seed)),
        data.total_batch_size,
        seed if seed >= 0 else comm.shared_random_seed(),
    )
    wrapped = distribute(model, **cfg.train.ddp)
    trainer = make_training_step(wrapped, loader, optimizer, cfg.train.amp.enabled, cfg.train.output_dir)
    checkpointer = ClassAwareCheckpointer(
        model,
        cfg.train.output_dir,
        class_ids=class_ids,
        reset_weights=cfg.train.get("reset_weights", ()),
        trainer=trainer,
    )
    for name in _evaluated(cfg):  # what is wrong with an evaluation shows now, not when it is due
        _evaluator(cfg, name)
    results: dict[str, Any] = {}

    def evaluate() -> dict[str, Any]:
        results.clear()
        results.update(do_test(cfg, wrapped))
        return results

    trainer.register_hooks(logs)
    trainer.register_hooks(
        default_hooks(
            optimizer=optimizer,
            scheduler=LRMultiplier(optimizer, _made(cfg.lr_multiplier), cfg.train.max_iter),
            checkpointer=checkpointer,
            checkpoint_period=cfg.train.checkpointer.period,
            max_checkpoints=cfg.train.checkpointer.get("max_to_keep") or 0,
            evaluate=evaluate,
            eval_period=cfg.train.eval_period,
            output_dir=cfg.train.output_dir,
            max_iter=cfg.train.max_iter,
            log_period=cfg.train.log_period,
        )
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start_iter = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    prepare_start(checkpointer, loader, start_iter, resume=resume)
    trainer.train(start_iter, cfg.train.max_iter)
    return results


def _train_loader(cfg: DictConfig, start: int, seed: int) -> Iterable[Any]:
    """``dataloader.train``, going on after `start` images, with the run's seed unless it has its own."""
    loader = cfg.dataloader.train.copy()
    described = OmegaConf.is_dict(loader.get("sampler"))  # such a sampler has its own start and seed
    for part in (loader, loader.sampler) if described else (loader,):
        own = part.get("seed")
        if own is None or own < 0 or own == cfg.train.get("seed"):
            part.seed = seed
    (loader.sampler if described else loader).start = start
    return _made(loader)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, or with ``--eval-only`` evaluates, as the command line says.

    Raises:
        ConfigError: see :func:`longtail_det2.engine.setup.setup_from_arguments`.
        DataError: likewise.
    """
    if not args.config_file:
        raise ConfigError("--config-file is missing: a lazy config has no defaults to fall back on")
    cfg = setup_from_arguments(load_lazy(args.config_file, args.opts), args)
    if not args.eval_only:
        return do_train(cfg, args.resume)
    names = lazy_dataset_names(cfg)[1]
    if "evaluator" not in cfg.dataloader or not names:
        raise ConfigError("--eval-only: the config has no dataloader.evaluator or no dataloader.test")
    model = build_lazy_model(cfg)
    checkpointer = ClassAwareCheckpointer(model, cfg.train.output_dir, class_ids=class_ids_of(names[0]))
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return do_test(cfg, model)
