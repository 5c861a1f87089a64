"""Evaluations, log lines, metrics.json and TensorBoard's files, over killed and resumed runs.

A run that was killed and resumed writes what an uninterrupted one does: every iteration once, none missing,
an evaluation that was interrupted made up.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
WINDOW = 20
"""Iterations whose median Detectron2's writers write."""


def cut_metrics(path: str, start_iter: int) -> int:
    """Remove the lines of metrics.json about iterations that will be done again, and a line cut short.

    Args:
        path: of the file; a missing one is fine.
        start_iter: iteration that training starts with.

    Returns:
        The iteration of the last line that stays; -1 without one.
    """
    keep, last = 0, -1
    if not os.path.isfile(path):
        return last
    with open(path, "rb+") as file:
        for line in file:
            try:
                iteration = int(json.loads(line)["iteration"]) if line.endswith(b"\n") else start_iter
            except (ValueError, KeyError, TypeError):
                break
            if iteration >= start_iter:
                break
            keep, last = keep + len(line), max(last, iteration)
        file.truncate(keep)
    return last


def set_metrics_aside(output_dir: str) -> str:
    """Rename the metrics.json of another run, so that two runs do not mix in one file.

    Returns:
        The new name; "" if there was none.
    """
    path, number = os.path.join(output_dir, METRICS_FILE), 1
    if not os.path.isfile(path):
        return ""
    while os.path.exists(name := os.path.join(output_dir, f"metrics.{number}.json")):
        number += 1
    os.rename(path, name)
    return name


class MetricsLog(hooks.EvalHook):
    """Evaluate and write, every so many iterations and at the end.

    Registered in all processes, after the hook that writes checkpoints; only the main process writes. A
    checkpoint is written before the evaluation of its iteration and before its line; what a kill in between
    cost is made up when training resumes. For that, checkpoints keep the last values of each scalar.
    """

    def __init__(
        self,
        output_dir: str,
        evaluate: Callable[[], Mapping[str, Any] | None],
        *,
        log_period: int,
        eval_period: int,
    ) -> None:
        """Touch no file.

        Args:
            output_dir: folder of the files.
            evaluate: returns results by name, {} or None on other processes than the main one.
            log_period: iterations between two lines.
            eval_period: iterations between two evaluations; 0 for one at the end alone.
        """
        super().__init__(eval_period, evaluate)
        self._output_dir, self._log_period = output_dir, log_period
        self._writers: list[EventWriter] = []
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: {"iteration": i, "values": {name: [[value, iteration], ...]}, "hints": {...}}."""
        storage = self.trainer.storage
        values = {
            name: [[*one] for one in kept.values()[-WINDOW:]] for name, kept in storage.histories().items()
        }
        return {"iteration": self.trainer.iter, "values": values, "hints": dict(storage.smoothing_hints())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up, when training starts, what :meth:`state_dict` gave."""
        self._restored = state_dict

    def before_train(self) -> None:
        """Open the files, and make up what is missing of the checkpoint's iteration.

        Raises:
            ConfigError: the files cannot be written.
        """
        first = self.trainer.start_iter
        missing = comm.is_main_process() and self._open(first) < first - 1 and self._due(first - 1)[1]
        state, self._restored = self._restored, {}
        if state.get("iteration") != first - 1:
            return
        if comm.is_main_process():
            self._restore(state, missing)
        if comm.all_gather(missing)[0]:
            self.trainer.storage.iter = first - 1
            self._evaluate_and_write(first - 1)
            self.trainer.storage.iter = first

    def after_step(self) -> None:
        """Evaluate and write, if it is time.

        Raises:
            ConfigError: the files cannot be written.
        """
        self._evaluate_and_write(self.trainer.iter)

    def after_train(self) -> None:
        """Evaluate and write, if training came to its end; after an error, trouble here must not hide it."""
        trainer = self.trainer
        finished = trainer.iter >= trainer.max_iter
        if finished:
            # Detectron2's loop counts one further where a finished run is resumed.
            trainer.iter = trainer.storage.iter = trainer.max_iter
            self._do_eval()
        try:
            self._write()
            for writer in self._writers:
                writer.close()
        except Exception as error:
            if finished:
                raise
            logger.error("%s", error)
        del self._func  # which holds the model

    def _due(self, iteration: int) -> tuple[bool, bool]:
        """Whether an evaluation and a line are due after an iteration."""
        done = iteration + 1
        evaluation = self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter
        return evaluation, evaluation or done % self._log_period == 0 or done == self.trainer.max_iter

    def _evaluate_and_write(self, iteration: int) -> None:
        evaluation, line = self._due(iteration)
        if evaluation:
            self._do_eval()
        if line:
            self._write()

    def _open(self, first: int) -> int:
        """Open the files; return the last iteration in metrics.json."""
        path = os.path.join(self._output_dir, METRICS_FILE)
        with self._named_errors():
            os.makedirs(self._output_dir, exist_ok=True)
            last = cut_metrics(path, first)
            self._writers = [
                CommonMetricPrinter(self.trainer.max_iter),
                JSONWriter(path),
                _Events(self._output_dir, purge_step=first),
            ]
        return last

    def _restore(self, state: dict[str, Any], as_latest: bool) -> None:
        """Put the values of a checkpoint back; as the latest ones if their line is to be written."""
        storage = self.trainer.storage
        storage.smoothing_hints().update(state["hints"])
        storage.iter = state["iteration"]
        for name, pairs in state["values"].items():
            for value, iteration in pairs:
                if as_latest and iteration == state["iteration"]:
                    storage.put_scalar(name, value, smoothing_hint=state["hints"][name])
                else:
                    storage.histories()[name].update(value, iteration)
        storage.iter = self.trainer.start_iter

    def _write(self) -> None:
        with self._named_errors():
            for writer in self._writers:
                writer.write()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self._output_dir}: metrics cannot be written: {error.strerror or error}. Make room or "
                "permissions for the folder and go on with --resume"
            ) from error


class _Events(TensorboardXWriter):
    """TensorBoard's file, on the disk after every write: a killed run shows what metrics.json has."""

    def write(self) -> None:
        super().write()
        self._writer.flush()
