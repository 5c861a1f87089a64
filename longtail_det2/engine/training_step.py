"""One training step: its images, random numbers and metrics, and what happens when a loss is not finite."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; the message names the iteration, the loss and the images."""


class ResumableLoader:
    """Training batches from any iteration on, each with the random numbers that belong to its iteration.

    Before a batch is handed out, Python's, NumPy's and PyTorch's global generators are seeded with (seed,
    iteration, rank): what the model draws (which anchors and proposals to sample, dropout) does not depend on
    what happened before, and a resumed run draws the same.

    Attributes:
        start_iter: iterations done before; set it before the first batch.
        batch_size: images per iteration over all ranks.
        seed: non-negative, the same on all ranks; a checkpoint keeps it.
        image_ids: of the batch handed out last, on this rank.
    """

    def __init__(self, build: Callable[[int, int], Iterable[Any]], batch_size: int, seed: int) -> None:
        """Take a function from (images drawn before over all ranks, seed) to a loader."""
        self._build = build
        self.batch_size, self.seed = batch_size, seed
        self.start_iter = 0
        self.image_ids: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        """Iterate without end; the loader is built when the first batch is asked for."""
        batches = self._build(self.start_iter * self.batch_size, self.seed)
        for iteration, batch in enumerate(batches, self.start_iter):
            self.image_ids = [
                str(item.get("image_id", item.get("file_name", "?"))) if isinstance(item, Mapping) else "?"
                for item in batch
            ]
            seed_generators(self.seed, iteration, comm.get_rank())
            yield batch


def seed_generators(seed: int, iteration: int, rank: int) -> None:
    """Seed the global random number generators of this process for one iteration."""
    # The spawn key keeps these numbers apart from those of samplers and augmentations.
    words = np.random.SeedSequence((seed, iteration, rank), spawn_key=(2,)).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 - the generator that libraries use
    torch.manual_seed(words[2])


def make_training_step(
    model: nn.Module,
    loader: ResumableLoader,
    optimizer: Optimizer,
    mixed_precision: bool,
) -> SimpleTrainer:
    """Detectron2's object for one training step, with automatic mixed precision where there is CUDA.

    Args:
        model: see Detectron2.
        loader: of the training data.
        optimizer: of the model's parameters.
        mixed_precision: ignored, with a line in the log, without CUDA.
    """
    if mixed_precision and not torch.cuda.is_available():
        logger.warning("mixed precision is asked for, but there is no CUDA: training in float32")
        mixed_precision = False
    return (_MixedPrecisionStep if mixed_precision else _Step)(model, loader, optimizer)


class _Step(SimpleTrainer):
    """Detectron2's step with checked losses; its state also holds the seed of the run's random numbers."""

    data_loader: ResumableLoader

    def run_step(self) -> None:
        try:
            super().run_step()
        except NonFiniteLossError:
            raise
        except FloatingPointError as error:  # Detectron2's, of predictions, on this rank alone
            self._stop({f"predictions ({error})": math.nan}, comm.get_rank(), self.data_loader.image_ids)

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """Average the losses over the processes, store them, and stop all where one is not finite.

        One reduction carries the losses and the time; a value that is not finite stays so in the sum, and
        only then do the processes tell each other which images it came from.
        """
        own = torch.stack([value.detach().double() for value in loss_dict.values()])
        mean = torch.cat([own, own.new_full((1,), data_time)])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(mean)
            mean /= comm.get_world_size()
        *values, data_time = mean.tolist()
        if not all(map(math.isfinite, values)):
            self._stop_all(dict(zip(loss_dict, own.tolist(), strict=True)))
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", data_time)
        storage.put_scalar(f"{prefix}total_loss", sum(values))
        if len(values) > 1:
            storage.put_scalars(**dict(zip(loss_dict, values, strict=True)))

    def _stop_all(self, losses: dict[str, float]) -> None:
        """Stop with the message of the first process whose losses are not finite."""
        per_rank = comm.all_gather((losses, self.data_loader.image_ids))
        for rank, (found, image_ids) in enumerate(per_rank):
            if not all(map(math.isfinite, found.values())):
                self._stop(found, rank, image_ids)
        self._stop(losses, comm.get_rank(), self.data_loader.image_ids)  # the sum of large losses is infinite

    def _stop(self, losses: Mapping[str, float], rank: int, image_ids: Sequence[str]) -> None:
        iteration = get_event_storage().iter
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        first = ", ".join(f"{name} = {losses[name]}" for name in wrong)
        raise NonFiniteLossError(
            f"training stopped in iteration {iteration}: {first} in the batch of the images "
            f"{', '.join(image_ids)} (process {rank}). Look at these images and their boxes "
            "(longtail-det2 visualize data); if they are good, lower SOLVER.BASE_LR or clip "
            "gradients (SOLVER.CLIP_GRADIENTS), and go on from the last checkpoint with --resume"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.data_loader.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.data_loader.seed = int(state_dict.get("seed", self.data_loader.seed))


class _MixedPrecisionStep(_Step, AMPTrainer):
    """The same under automatic mixed precision."""
