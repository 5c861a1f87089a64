"""Where an ablation keeps what, and files that are never half-written."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer

from .jobs import FINAL_WEIGHTS, Job
from .specification import DataSpec

logger = logging.getLogger(__name__)

_WAIT = 15.0
"""Seconds in which what a killed command left running has ended."""


@dataclass(frozen=True)
class Layout:
    """Paths below the output folder.

    Attributes:
        output: the folder.
    """

    output: Path

    def data_root(self, data: DataSpec, run_seed: int) -> Path:
        """What DATASETS.ROOT is set to."""
        if data.folder is not None:
            return data.folder.absolute()
        suffix = f"-seed{run_seed}" if data.seed_per_run else ""
        return self.output / "data" / f"{data.name}{suffix}"

    def data(self, data: DataSpec, run_seed: int) -> Path:
        """What "{data}" stands for: the generated data set, or the folder of data that are there."""
        root = self.data_root(data, run_seed)
        return root if data.folder is not None else root / data.generated_name

    def prepared(self, data: DataSpec, run_seed: int) -> Path:
        """Where it stands which commands a data set was prepared with: it goes when the data set goes."""
        if data.folder is not None:
            return self.output / "data" / f"{data.name}.prepared.json"
        return self.data(data, run_seed) / "prepared.json"

    def job(self, place: str) -> Path:
        """Folder of a job."""
        return self.output / "runs" / place

    def run(self, place: str) -> Path:
        """OUTPUT_DIR of a job."""
        return self.job(place) / "run"

    def log(self, place: str) -> Path:
        """What a job wrote to its output and error streams."""
        return self.job(place) / "job.log"

    def weights(self, place: str) -> Path:
        """What a training leaves."""
        return self.run(place) / FINAL_WEIGHTS

    def result(self, job: Job) -> dict[str, Any] | None:
        """The result of a job; None if it has none, or one of other settings."""
        content = read_json(self.job(job.place) / "result.json")
        return content if content.get("hash") == job.hash else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Writes a file that appears under its name only when it is complete."""
    with atomic_writer(path) as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False)
        stream.write("\n")


@contextmanager
def locked(output: Path) -> Iterator[IO[str]]:
    """Holds the output folder for this command and, as its file is handed on to them, for its jobs.

    Raises:
        ConfigError: another command, or a job that one left behind, holds it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a+", encoding="utf-8") as lock:
        end = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                lock.seek(0)
                holder = lock.read().strip()
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{output} is in use by another command (process {holder or 'unknown'}, or a job "
                        "that it started): wait until it is done, or choose another --output"
                    ) from None
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock
