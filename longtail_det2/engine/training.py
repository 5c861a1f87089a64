"""What YAML and lazy training share: the distributed model, the hooks, the evaluator, where to resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from detectron2.engine import create_ddp_model, hooks
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from longtail_det2.checkpoint import PeriodicCheckpoints

from .metrics_log import Evaluation, MetricsHistory, Writers, cut_metrics
from .training_step import ResumableLoader

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
"""Iterations between two lines of the log and of metrics.json."""


def distribute(model: nn.Module, **options: Any) -> nn.Module:
    """The model for distributed data parallel training, or itself in a single process."""
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        options["device_ids"] = None
    wrapped: nn.Module = create_ddp_model(model, **options)
    return wrapped


def default_hooks(
    *,
    optimizer: Optimizer,
    scheduler: Any,
    checkpointer: Any,
    checkpoint_period: int,
    evaluate: Callable[[], Mapping[str, Any] | None],
    eval_period: int,
    output_dir: str,
    max_iter: int,
    log_period: int = LOG_PERIOD,
    max_checkpoints: int = 0,
) -> list[HookBase | None]:
    """Timing, learning rate, checkpoints, evaluation, log lines with metrics.json and TensorBoard.

    Args:
        optimizer: what the scheduler drives.
        scheduler: stepped after every iteration.
        checkpointer: saves every `checkpoint_period` iterations and at the end (``model_final``).
        checkpoint_period: in iterations.
        evaluate: called every `eval_period` iterations (0: never) and at the end, after the checkpoint.
        eval_period: in iterations.
        output_dir: where the writers write.
        max_iter: of the training, for the estimated time of arrival.
        log_period: in iterations.
        max_checkpoints: older ones are removed; 0 keeps all.

    Raises:
        ConfigError: the numbers about checkpoints are out of range.
    """
    history = MetricsHistory(output_dir, log_period)
    result: list[HookBase | None] = [
        hooks.IterationTimer(),
        hooks.LRScheduler(optimizer, scheduler),
        history,
    ]
    if comm.is_main_process():
        result.append(PeriodicCheckpoints(checkpointer, checkpoint_period, max_checkpoints))
    result.append(Evaluation(eval_period, evaluate))
    if comm.is_main_process():
        # Last, so that they also write what the evaluation found.
        result.append(Writers(output_dir, max_iter, log_period, history))
    return result


def prepare_start(checkpointer: Any, loader: ResumableLoader, start_iter: int, *, resume: bool) -> None:
    """Makes loader and logs go on at an iteration; the checkpoint is loaded.

    Args:
        checkpointer: of the run's folder.
        loader: of the training data.
        start_iter: iterations done before.
        resume: the run continues; else its folder's metrics.json is appended to as it is.
    """
    loader.start_iter = start_iter
    if start_iter:
        logger.info("Continuing at iteration %d, with seed %d", start_iter, loader.seed)
    if resume and comm.is_main_process():
        cut_metrics(checkpointer.save_dir, start_iter)


def evaluate_model(
    model: nn.Module, loader: Iterable[Any], evaluator: DatasetEvaluator, name: str
) -> dict[str, Any]:
    """Runs a model over a test set and evaluates; results on the main process, {} on the others.

    Args:
        model: put into evaluation mode meanwhile.
        loader: of the test set.
        evaluator: see Detectron2.
        name: of the test set, for the log.
    """
    results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process() and results:
        logger.info("Results on %s", name)
        print_csv_format(results)
    return results
