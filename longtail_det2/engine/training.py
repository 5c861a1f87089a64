"""What YAML and lazy training share: the loop, its hooks, its state, the evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
"""Iterations between two lines of the log and of metrics.json."""


class ResumableLoader:
    """A loader that is built at the first batch, when it is known where training starts.

    Attributes:
        start: images drawn before, over all ranks; set it before the first batch.
    """

    def __init__(self, build: Callable[[int], Iterable[Any]]) -> None:
        """Takes a function from `start` to a loader."""
        self._build = build
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        """Batches without end. A generator: nothing is built before the first one is asked for."""
        yield from self._build(self.start)


def make_training_step(
    model: nn.Module, loader: Iterable[Any], optimizer: Optimizer, mixed_precision: bool
) -> SimpleTrainer:
    """Detectron2's object for one training step, with automatic mixed precision where there is CUDA."""
    if mixed_precision and not torch.cuda.is_available():
        logger.warning("mixed precision is asked for, but there is no CUDA: training in float32")
        mixed_precision = False
    trainer: SimpleTrainer = (AMPTrainer if mixed_precision else SimpleTrainer)(model, loader, optimizer)
    return trainer


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
    max_checkpoints: int | None = None,
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
        max_checkpoints: older ones are removed; None keeps all.
    """
    result: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler(optimizer, scheduler)]
    if comm.is_main_process():
        result.append(
            hooks.PeriodicCheckpointer(checkpointer, checkpoint_period, max_to_keep=max_checkpoints)
        )
    result.append(hooks.EvalHook(eval_period, evaluate))
    if comm.is_main_process():
        # Last, so that they also write what the evaluation found.
        result.append(hooks.PeriodicWriter(default_writers(output_dir, max_iter), period=log_period))
    return result


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
