"""Checkpoints at regular intervals, of which the newest are kept, over resumes too."""

from __future__ import annotations

import os
import re

from detectron2.engine import hooks

from longtail_det2.utils.errors import ConfigError

from .checkpointer import ClassAwareCheckpointer

_NAME = re.compile(r"model_(\d{7,})\.pth")


class PeriodicCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also removes old checkpoints that the run wrote before it was resumed.

    ``model_final.pth`` is always kept. A run that begins again in a used folder leaves what
    is there.
    """

    def __init__(self, checkpointer: ClassAwareCheckpointer, period: int, max_to_keep: int = 0) -> None:
        """Check the numbers; touch no file.

        Args:
            checkpointer: of the run's folder.
            period: iterations between checkpoints.
            max_to_keep: older checkpoints are removed; 0 keeps all.

        Raises:
            ConfigError: a number is out of range.
        """
        _check("SOLVER.CHECKPOINT_PERIOD", "train.checkpointer.period", period, 1)
        _check("SOLVER.CHECKPOINT_MAX_TO_KEEP", "train.checkpointer.max_to_keep", max_to_keep, 0)
        super().__init__(checkpointer, period, max_to_keep=max_to_keep or None)

    def before_train(self) -> None:
        """Find the checkpoints of a run that is resumed, and remove those that are too many.

        Those of iterations that will be done again go, too: training could not resume from them, or was not
        to.
        """
        super().before_train()
        start, folder = self.trainer.start_iter, self.checkpointer.save_dir
        if not start or self.max_to_keep is None:
            return
        found = sorted(
            (match for match in map(_NAME.fullmatch, os.listdir(folder)) if match), key=lambda m: int(m[1])
        )
        kept = [match[0] for match in found if int(match[1]) < start][-self.max_to_keep :]
        for match in found:
            if match[0] not in kept:
                os.remove(os.path.join(folder, match[0]))
        self.recent_checkpoints = [os.path.join(folder, name) for name in kept]


def _check(key: str, lazy_key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key} ({lazy_key} in a lazy config) is {value}; it must be at least {least}")
