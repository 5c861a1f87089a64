"""A training run: its parts, which a YAML or a lazy config describes, and what is done with them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.engine import create_ddp_model, hooks
from detectron2.engine.train_loop import HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from longtail_det2.checkpoint import ClassAwareCheckpointer, PeriodicCheckpoints
from longtail_det2.data.samplers import Phase
from longtail_det2.utils.errors import ConfigError

from .metrics_log import MetricsLog, set_metrics_aside
from .sampling_log import SamplingLog
from .training_step import ResumableLoader, make_training_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a training run is made of.

    Attributes:
        model: on its device, not yet wrapped for several processes.
        class_ids: of the model's classes, in index order.
        optimizer: of the model's parameters.
        scheduler: stepped after every iteration.
        build_loader: (images drawn before over all processes, seed) -> training batches.
        batch_size: images per iteration over all processes.
        max_iter: iterations of the run.
        evaluate: model -> results by name, {} on other processes than the main one.
        output_dir: folder of the run.
        seed: non-negative, the same in all processes.
        weights: that training starts from; "" for none.
        reset_weights: beginnings of names of parameters that are not loaded from `weights`.
        phases: of the sampler, () for a run with one sampler.
        mixed_precision: see :func:`make_training_step`.
        ddp: arguments of `DistributedDataParallel`.
        checkpoint_period: iterations between checkpoints.
        max_checkpoints: older ones are removed; 0 keeps all.
        eval_period: iterations between evaluations; 0 for one at the end alone.
        log_period: iterations between lines of the log and of metrics.json.
    """

    model: nn.Module
    class_ids: Sequence[str]
    optimizer: Optimizer
    scheduler: Any
    build_loader: Callable[[int, int], Iterable[Any]]
    batch_size: int
    max_iter: int
    evaluate: Callable[[nn.Module], Mapping[str, Any]]
    output_dir: str
    seed: int
    weights: str = ""
    reset_weights: Sequence[str] = ()
    phases: Sequence[Phase] = ()
    mixed_precision: bool = False
    ddp: Mapping[str, Any] = field(default_factory=lambda: {"broadcast_buffers": False})
    checkpoint_period: int = 5000
    max_checkpoints: int = 0
    eval_period: int = 0
    log_period: int = 20


class Run:
    """A training run, from its parts to its last evaluation.

    A resumed run goes on with everything: weights, optimizer, schedule, the images that were next, random
    numbers, metrics.json.

    Attributes:
        parts: what it is made of.
        step: Detectron2's object for training steps, which also holds the hooks.
        checkpointer: of the folder.
        start_iter: iterations done before.
        results: of the last evaluation, on the main process.
    """

    def __init__(self, parts: Parts) -> None:
        """Build everything but the data loader, which is built at the first step.

        Raises:
            ConfigError: a number about checkpoints is out of range, or parts do not fit each other.
        """
        self.parts = parts
        self.start_iter = 0
        self.results: dict[str, Any] = {}
        self._is_loaded = False
        sampling = SamplingLog(parts.output_dir, parts.phases, parts.max_iter, parts.batch_size)
        self._loader = ResumableLoader(
            lambda start, seed: sampling.watch(parts.build_loader(start, seed)), parts.batch_size, parts.seed
        )
        self.step: SimpleTrainer = make_training_step(
            _distributed(parts.model, **parts.ddp),
            self._loader,
            parts.optimizer,
            parts.mixed_precision,
        )
        self.checkpointer = ClassAwareCheckpointer(
            parts.model,
            parts.output_dir,
            class_ids=parts.class_ids,
            reset_weights=parts.reset_weights,
            trainer=weakref.proxy(self.step),
        )
        self.register_hooks([sampling, *self.build_hooks()])

    @property
    def model(self) -> nn.Module:
        """The model, wrapped where there are several processes."""
        return self.step.model

    @property
    def iter(self) -> int:
        """The iteration that is being done, or was done last."""
        return self.step.iter

    def register_hooks(self, added: Sequence[HookBase | None]) -> None:
        """Add hooks, which run after those that are there."""
        self.step.register_hooks(list(added))

    def build_hooks(self) -> list[HookBase]:
        """Return hooks for timing, learning rate, checkpoints, evaluation and logs."""
        parts = self.parts
        checkpoints = PeriodicCheckpoints(self.checkpointer, parts.checkpoint_period, parts.max_checkpoints)
        log = MetricsLog(
            parts.output_dir, self._evaluate, log_period=parts.log_period, eval_period=parts.eval_period
        )
        first = [hooks.IterationTimer(), hooks.LRScheduler(parts.optimizer, parts.scheduler)]
        return [*first, *([checkpoints] if comm.is_main_process() else []), log]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the newest checkpoint if `resume` and there is one, else the weights to start from.

        Raises:
            ConfigError: the weights are of other classes or shapes, or cannot be read.
        """
        folder, weights = self.parts.output_dir, self.parts.weights
        goes_on = resume and self.checkpointer.has_checkpoint()
        if resume and not goes_on:
            logger.warning(
                "--resume: %s has no checkpoint; training starts from %s", folder, weights or "random weights"
            )
        elif not resume and comm.is_main_process():
            renamed = set_metrics_aside(folder)
            if renamed or self.checkpointer.has_checkpoint():
                logger.warning(
                    "%s is the folder of another run: its checkpoints will be overwritten%s. To go on with "
                    "that run: --resume",
                    *(folder, f", its metrics are now {renamed}" if renamed else ""),
                )
        self.checkpointer.resume_or_load(weights, resume=resume)
        self._is_loaded = True
        self.start_iter = self._loader.start_iter = self.step.iter + 1 if goes_on else 0
        if self.start_iter:
            logger.info("Continuing at iteration %d, with seed %d", self.start_iter, self._loader.seed)

    def train(self) -> dict[str, Any]:
        """Train to the end; without :meth:`resume_or_load` before, from the weights to start from.

        Returns:
            Results of the last evaluation, on the main process; {} on the others.
        """
        if not self._is_loaded:
            self.resume_or_load(resume=False)
        self.step.train(self.start_iter, self.parts.max_iter)
        return self.results

    def _evaluate(self) -> Mapping[str, Any]:
        self.results = dict(self.parts.evaluate(self.step.model))
        return self.results


def run(parts: Parts, *, resume: bool = False) -> dict[str, Any]:
    """Train what the parts describe, and return the results of the last evaluation; see :class:`Run`."""
    whole = Run(parts)
    whole.resume_or_load(resume=resume)
    return whole.train()


def load_for_evaluation(
    model: nn.Module, weights: str, output_dir: str, class_ids: Sequence[str], *, resume: bool
) -> None:
    """Load what ``--eval-only`` evaluates: the folder's newest checkpoint if `resume`, else `weights`.

    Raises:
        ConfigError: there are no weights, or they lack parts of the model, so that random ones would be
            evaluated.
    """
    checkpointer = ClassAwareCheckpointer(model, output_dir, class_ids=class_ids, complete=True)
    if not weights and not (resume and checkpointer.has_checkpoint()):
        raise ConfigError(
            "--eval-only: there are no weights to evaluate; name them with MODEL.WEIGHTS (in a lazy config "
            f"train.init_checkpoint), or take the newest checkpoint of {output_dir} with --resume"
        )
    checkpointer.resume_or_load(weights, resume=resume)


def evaluate_model(
    model: nn.Module, loader: Iterable[Any], evaluator: DatasetEvaluator, name: str
) -> dict[str, Any]:
    """Run a model over a test set and evaluate; results on the main process, {} on the others.

    Args:
        model: put into evaluation mode meanwhile.
        loader: of the test set.
        evaluator: see Detectron2.
        name: of the test set, for the log.
    """
    with _buffers_of_main_process(model):
        results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process() and results:
        logger.info("Results on %s", name)
        print_csv_format(results)
    return results


def _distributed(model: nn.Module, **options: Any) -> nn.Module:
    """The model for distributed data parallel training, or itself in a single process."""
    if comm.get_world_size() > 1 and not torch.cuda.is_available():
        options["device_ids"] = None
    wrapped: nn.Module = create_ddp_model(model, **options)
    return wrapped


@contextmanager
def _buffers_of_main_process(model: nn.Module) -> Iterator[None]:
    """Meanwhile, give all processes the main one's buffers, which are those that checkpoints have."""
    if comm.get_world_size() == 1:
        yield
        return
    own = [buffer.clone() for buffer in model.buffers()]
    for buffer in model.buffers():
        sent = buffer.byte() if buffer.dtype == torch.bool else buffer.contiguous()
        torch.distributed.broadcast(sent, src=0)
        buffer.copy_(sent)
    try:
        yield
    finally:
        for buffer, before in zip(model.buffers(), own, strict=True):
            buffer.copy_(before)
