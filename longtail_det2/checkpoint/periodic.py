"""Checkpoints at regular intervals, of which the newest are kept, over resumes too."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from detectron2.engine import hooks

from longtail_det2.utils.errors import ConfigError

from .checkpointer import ClassAwareCheckpointer

logger = logging.getLogger(__name__)

_NAME = re.compile(r"model_(\d{7,})\.pth")


class PeriodicCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also removes old checkpoints that the run wrote before it was resumed.

    ``model_final.pth`` is always kept. A run that begins anew in a used folder leaves what is there.
    """

    def __init__(self, checkpointer: ClassAwareCheckpointer, period: int, max_to_keep: int = 0) -> None:
        """Checks the numbers; touches no file.

        Args:
            checkpointer: of the run's folder.
            period: iterations between checkpoints.
            max_to_keep: older checkpoints are removed; 0 keeps all.

        Raises:
            ConfigError: a number is out of range.
        """
        _check("SOLVER.CHECKPOINT_PERIOD", "train.checkpointer.period", period, 1)
        _check("SOLVER.CHECKPOINT_MAX_TO_KEEP", "train.checkpointer.max_to_keep", max_to_keep, 0)
        super().__init__(checkpointer, period)
        self._folder = checkpointer.save_dir
        self._keep = max_to_keep
        self._written: list[str] = []

    def before_train(self) -> None:
        """Looks for the checkpoints of a run that is resumed."""
        super().before_train()
        start = self.trainer.start_iter
        self._written = _written_before(self._folder, start) if start and self._keep else []

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Writes a checkpoint if one is due, then removes those that are too many."""
        super().step(iteration, **kwargs)
        if not self._keep or (iteration + 1) % self.period:
            return
        name = f"{self.file_prefix}_{iteration:07d}.pth"
        self._written = [*(one for one in self._written if one != name), name]
        while len(self._written) > self._keep:
            self._remove(self._written.pop(0))

    def _remove(self, name: str) -> None:
        try:
            os.remove(os.path.join(self._folder, name))
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("An old checkpoint cannot be removed: %s", error)


def _written_before(folder: str, start_iter: int) -> list[str]:
    """Checkpoints of the folder, in the order in which they may go.

    Those of iterations that will be done again come first: training could not resume from them, or was not
    to. The others follow, the oldest first.
    """
    found = [match for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    found.sort(key=lambda match: (int(match[1]) < start_iter, int(match[1])))
    return [match[0] for match in found]


def _check(key: str, lazy_key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key} ({lazy_key} in a lazy config) is {value}; it must be at least {least}")
