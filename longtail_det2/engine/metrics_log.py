"""metrics.json and TensorBoard's files over a killed and resumed run: each iteration once, none missing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.engine import hooks
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter

from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
WINDOW = 20
"""Iterations whose median Detectron2's writers write."""

_Lines = list[tuple[int, int]]


def cut_metrics(output_dir: str, start_iter: int) -> None:
    """Removes what metrics.json says about iterations that will be done again.

    These are the lines from the first on that is not before `start_iter`, and a last line that a killed
    process did not finish.

    Args:
        output_dir: folder of the run; a missing file is fine.
        start_iter: iteration that training starts with.
    """
    path = os.path.join(output_dir, METRICS_FILE)
    if not os.path.isfile(path):
        return
    keep = 0
    with open(path, "rb+") as file:
        for line in file:
            iteration = _iteration(line)
            if iteration is None or iteration >= start_iter:
                break
            keep += len(line)
        file.truncate(keep)


def last_logged_iteration(output_dir: str) -> int:
    """The iteration of the last complete line of metrics.json; -1 without one."""
    path = os.path.join(output_dir, METRICS_FILE)
    if not os.path.isfile(path):
        return -1
    with open(path, "rb") as file:
        found = [_iteration(line) for line in file]
    return max((iteration for iteration in found if iteration is not None), default=-1)


def _iteration(line: bytes) -> int | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return None


class MetricsHistory(HookBase):
    """Keeps in the checkpoint what metrics.json needs: the window of values that medians are taken of.

    It also keeps the line of the checkpoint's own iteration, which is written after the checkpoint and so
    would be missing where a run was killed in between.

    Attributes:
        missing: that line, where it was missing when this run began; else empty.
    """

    def __init__(self, output_dir: str, log_period: int) -> None:
        """Registered in all processes; it does something in the main one.

        Args:
            output_dir: folder of metrics.json.
            log_period: iterations between its lines.
        """
        self._output_dir, self._period = output_dir, log_period
        self._restored: dict[str, Any] = {}
        self.missing: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: {"values": {name: [[value, iteration], ...]}, "smooth": {...}, "line": {...}}."""
        storage = self.trainer.storage
        values = {
            name: [[*pair] for pair in kept.values()[-WINDOW:]] for name, kept in storage.histories().items()
        }
        iteration = self.trainer.iter
        latest = storage.latest_with_smoothing_hint(WINDOW)
        line = {name: float(value) for name, (value, at) in latest.items() if at == iteration}
        return {
            "values": values,
            "smooth": dict(storage.smoothing_hints()),
            "line": {**line, "iteration": iteration},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._restored = state_dict

    def before_train(self) -> None:
        """Puts the values back, where training goes on directly after the checkpoint."""
        state, self._restored = self._restored, {}
        if (
            not state
            or not comm.is_main_process()
            or state["line"]["iteration"] + 1 != self.trainer.start_iter
        ):
            return
        storage = self.trainer.storage
        for name, values in state["values"].items():
            for value, iteration in values:
                storage.histories()[name].update(value, iteration)
        storage.smoothing_hints().update(state["smooth"])
        self._write_missing(state["line"])

    def after_train(self) -> None:
        """Says `max_iter` where a finished run is resumed, which Detectron2's loop counts one further."""
        if self.trainer.iter > self.trainer.max_iter:
            self.trainer.iter = self.trainer.storage.iter = self.trainer.max_iter

    def _write_missing(self, line: dict[str, Any]) -> None:
        done = line["iteration"] + 1
        due = done % self._period == 0 or done == self.trainer.max_iter
        if due and last_logged_iteration(self._output_dir) < line["iteration"]:
            self.missing = line
            with open(os.path.join(self._output_dir, METRICS_FILE), "a", encoding="utf-8") as file:
                file.write(json.dumps(line, sort_keys=True) + "\n")


class _Events(TensorboardXWriter):
    """TensorBoard's file, on the disk after every write: a killed run shows what metrics.json has."""

    def write(self) -> None:
        super().write()
        self._writer.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Writes a line of metrics.json."""
        for name, value in line.items():
            if name != "iteration":
                self._writer.add_scalar(name, value, line["iteration"])
        self._writer.flush()


class Writers(hooks.PeriodicWriter):
    """The log's lines, metrics.json and TensorBoard's files.

    As Detectron2's, but a resumed run shows no iteration twice, a full disk is a clear error, and trouble at
    the end hides no other error.
    """

    def __init__(self, output_dir: str, max_iter: int, period: int, history: MetricsHistory) -> None:
        """Opens metrics.json; TensorBoard's file is opened when training starts.

        Args:
            output_dir: folder of the files; made if need be.
            max_iter: of the training, for the estimated time of arrival.
            period: iterations between two writes.
            history: a hook that comes before this one.
        """
        os.makedirs(output_dir, exist_ok=True)
        super().__init__(
            [CommonMetricPrinter(max_iter), JSONWriter(os.path.join(output_dir, METRICS_FILE))], period
        )
        self._output_dir, self._history = output_dir, history

    def before_train(self) -> None:
        """Opens TensorBoard's file, which hides what older ones say about iterations that are done again.

        Raises:
            ConfigError: the file cannot be written.
        """
        first = self.trainer.start_iter
        # Where a run starts anew in a used folder, its lines follow the old ones, as in metrics.json.
        hides = first > 0 or last_logged_iteration(self._output_dir) < 0
        with self._named_errors():
            events = _Events(self._output_dir, purge_step=first if hides else None)
            self._writers.append(events)
            events.add(self._history.missing)

    def after_step(self) -> None:
        """Writes every `period` iterations.

        Raises:
            ConfigError: the files cannot be written.
        """
        with self._named_errors():
            super().after_step()

    def after_train(self) -> None:
        """Writes the rest; after an error, trouble here must not hide that one."""
        try:
            super().after_train()
        except Exception as error:
            if self.trainer.iter >= self.trainer.max_iter and not isinstance(error, OSError):
                raise
            logger.error("%s", self._message(error))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(self._message(error)) from error

    def _message(self, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or error
        return (
            f"{self._output_dir}: metrics cannot be written: {reason}. Make room or permissions for the "
            "folder and go on with --resume"
        )


class Evaluation(hooks.EvalHook):
    """Detectron2's, which does not evaluate after an error in the last iteration."""

    def after_train(self) -> None:
        """Evaluates if training came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
        else:
            del self._func
