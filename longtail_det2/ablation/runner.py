"""Does the jobs that are not done yet, some at once, each as a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.visualization.report_facts import duration

from .data import make_data
from .jobs import Job
from .layout import Layout, read_json, write_json
from .results import make_result, read_summary
from .specification import DataSpec, Specification

logger = logging.getLogger(__name__)

_POLL = 0.1
_LAST_LINES = 12
_GRACE = 10.0
"""Seconds that a job has to end after it was told to."""


@dataclass
class Failure:
    """A job without a result.

    Attributes:
        job: which.
        reason: what happened, in one line.
        lines: the last ones of its log.
    """

    job: Job
    reason: str
    lines: list[str] = field(default_factory=list)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    log_start: int
    started: float
    number: int


class Runner:
    """Runs jobs of one specification.

    Attributes:
        failures: what went wrong so far.
    """

    def __init__(
        self,
        specification: Specification,
        layout: Layout,
        scripts: Path,
        *,
        at_once: int = 1,
        threads: int = 1,
        lock: IO[str] | None = None,
        finished: Callable[[], object] = lambda: None,
    ) -> None:
        """Runs nothing yet.

        Args:
            specification: of the jobs.
            layout: of the output folder.
            scripts: folder with train_net.py and lazyconfig_train_net.py.
            at_once: jobs that run at the same time.
            threads: of each job.
            lock: file that the jobs keep open, so that its lock lasts as long as they do.
            finished: called after each job that left a result.
        """
        self.failures: list[Failure] = []
        self._specification, self._layout, self._scripts = specification, layout, scripts
        self._at_once, self._threads, self._lock = at_once, threads, lock
        self._finished = finished
        self._running: list[_Running] = []
        self._started = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs those of the jobs that are to be done, each after what it needs.

        A job that fails is noted in `failures`; those that need it are not started, the others are.

        Args:
            jobs: from :func:`longtail_det2.ablation.jobs.expand`.
        """
        waiting = pending(jobs, self._layout)
        total = len(waiting)
        waiting = self._make_data(waiting)
        try:
            while waiting or self._running:
                waiting = self._skip(waiting)
                while len(self._running) < self._at_once and (job := self._next(waiting)) is not None:
                    waiting.remove(job)
                    self._start(job, total)
                time.sleep(_POLL if self._running else 0)
                self._reap(total)
        finally:
            self._stop()

    def _make_data(self, waiting: list[Job]) -> list[Job]:
        """Makes what the jobs need; returns the jobs whose data are there."""
        wrong: dict[Path, str] = {}
        rest = []
        for job in waiting:
            data = self._specification.data[job.data]
            root = self._layout.data_root(data, job.seed)
            if root not in wrong:
                logger.info("data %s", root.name)
                wrong[root] = self._make(data, job.seed)
            if wrong[root]:
                self._fail(Failure(job, f"its data: {wrong[root]}"))
            else:
                rest.append(job)
        return rest

    def _make(self, data: DataSpec, run_seed: int) -> str:
        """Makes a data set; returns what went wrong."""
        try:
            make_data(data, run_seed, self._layout, self._scripts, self._at_once * self._threads)
        except (ConfigError, DataError, OSError) as error:
            return str(error)
        return ""

    def _skip(self, waiting: list[Job]) -> list[Job]:
        """Fails the jobs whose weights will not come; returns the others."""
        failed = {failure.job.place for failure in self.failures}
        rest = []
        for job in waiting:
            if job.needs in failed:
                self._fail(Failure(job, f"not started: {job.needs} failed"))
                failed.add(job.place)
            else:
                rest.append(job)
        return rest

    def _next(self, waiting: list[Job]) -> Job | None:
        """The first job whose needs are met."""
        unfinished = {job.place for job in waiting} | {one.job.place for one in self._running}
        return next((job for job in waiting if job.needs not in unfinished), None)

    def _start(self, job: Job, total: int) -> None:
        layout, folder = self._layout, self._layout.job(job.place)
        state = read_json(folder / "state.json")
        finished = (folder / "result.json").is_file()  # and yet to be done: its weights are gone
        if state.get("hash") != job.hash or job.is_evaluation or finished:
            for name in ("run", "job.log", "result.json"):
                _remove(folder / name)
            state = {"hash": job.hash, "attempts": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "state.json", {**state, "attempts": state["attempts"] + 1})
        command = self._command(job)
        log = layout.log(job.place).open("ab")
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        log_start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "longtail_det2.ablation.supervised", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            pass_fds=[self._lock.fileno()] if self._lock is not None else [],
        )
        self._started += 1
        verb = "evaluate" if job.is_evaluation else f"train {job.iterations:,} iterations"
        again = ", continued" if state["attempts"] else ""
        logger.info("[%d/%d] %s: %s%s", self._started, total, job.place, verb, again)
        self._running.append(_Running(job, process, log, log_start, time.monotonic(), self._started))

    def _command(self, job: Job) -> list[str]:
        layout, data = self._layout, self._specification.data[job.data]
        script = "lazyconfig_train_net.py" if job.config.suffix == ".py" else "train_net.py"
        weights = None if job.needs is None else layout.weights(job.needs)
        flags = ["--eval-only"] if job.is_evaluation else ["--resume"]
        if not job.is_evaluation and layout.weights(job.place).is_file():
            flags = ["--eval-only", "--resume"]  # the training had ended, its evaluation had not
        options = job.options(
            layout.data_root(data, job.seed), layout.data(data, job.seed), layout.run(job.place), weights
        )
        script_path = str(self._scripts / script)
        return [sys.executable, script_path, "--config-file", str(job.config), *flags, *options]

    def _reap(self, total: int) -> None:
        """Takes note of the jobs that have ended."""
        for one in list(self._running):
            process, status, usage = os.wait4(one.process.pid, os.WNOHANG)
            if not process:
                continue
            one.process.returncode = os.waitstatus_to_exitcode(status)
            self._running.remove(one)
            one.log.close()
            wall = time.monotonic() - one.started
            failure = self._finish(one, usage.ru_utime + usage.ru_stime, wall)
            if failure is not None:
                self._fail(failure)
                continue
            logger.info("[%d/%d] %s: done in %s", one.number, total, one.job.place, duration(wall))
            self._finished()

    def _finish(self, one: _Running, cpu_seconds: float, wall_seconds: float) -> Failure | None:
        """Writes the result of a job that has ended, or says why there is none."""
        job, layout = one.job, self._layout
        state = read_json(layout.job(job.place) / "state.json")
        state["cpu_seconds"] += cpu_seconds
        state["wall_seconds"] += wall_seconds
        write_json(layout.job(job.place) / "state.json", state)
        code = one.process.returncode
        if code != 0:
            reason = f"exit status {code}" if code > 0 else f"ended by signal {-code}"
            return Failure(job, reason, _last_lines(layout.log(job.place), one.log_start))
        try:
            summary = read_summary(layout.run(job.place))
        except DataError as error:
            return Failure(job, str(error), _last_lines(layout.log(job.place), one.log_start))
        write_json(layout.job(job.place) / "result.json", make_result(job, summary, state, self._threads))
        for checkpoint in layout.run(job.place).glob("model_[0-9]*.pth"):
            checkpoint.unlink()  # only the final weights are needed further
        return None

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        logger.error("FAILED %s: %s", failure.job.place, failure.reason)
        for line in failure.lines:
            logger.error("  | %s", line)

    def _stop(self) -> None:
        """Ends the jobs that run; what they have done so far is continued next time."""
        for one in self._running:
            one.process.terminate()
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(_GRACE)
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
            one.log.close()
        self._running.clear()


def pending(jobs: Sequence[Job], layout: Layout) -> list[Job]:
    """The jobs that have no result of the same settings, and trainings whose weights are gone but needed."""
    chosen: set[str] = set()
    for job in reversed(jobs):
        if job.place not in chosen and layout.result(job) is not None:
            continue
        chosen.add(job.place)
        if job.needs is not None and not layout.weights(job.needs).is_file():
            chosen.add(job.needs)
    return [job for job in jobs if job.place in chosen]


def describe_state(job: Job, layout: Layout) -> dict[str, Any]:
    """What is known about a job that was begun: its state.json, {} if it is of other settings."""
    state = read_json(layout.job(job.place) / "state.json")
    return state if state.get("hash") == job.hash else {}


def _last_lines(log: Path, start: int) -> list[str]:
    """The end of what a job wrote, from byte `start` on."""
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode("utf-8", errors="replace")
    return [line.rstrip()[:300] for line in text.splitlines() if line.strip()][-_LAST_LINES:]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
