"""Results of jobs: what an evaluation measured, where and with what."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch

import longtail_det2
from longtail_det2.utils.errors import DataError

from .jobs import Job
from .layout import Layout, read_json, write_json
from .specification import Specification


def read_summary(run: Path) -> dict[str, float | None]:
    """The means that the evaluation of a run left, in percent.

    Args:
        run: OUTPUT_DIR with inference/<data set>/results.json, whose "summary" holds fractions by task and
            name.

    Returns:
        By name ("mAP50", "coco_bbox/AP"), with the data set in front ("shapes_validation/mAP50") where there
        are several; None: a mean over nothing.

    Raises:
        DataError: there is none.
    """
    files = sorted(run.glob("inference/*/results.json"))
    several = len({path.parent for path in files}) > 1
    summary: dict[str, float | None] = {}
    for path in files:
        values = read_json(path).get("summary")
        if isinstance(values, Mapping):
            _add_values(summary, f"{path.parent.name}/" if several else "", values)
    if not summary:
        raise DataError("it ended without an evaluation: no inference/<data set>/results.json with a summary")
    return summary


def _add_values(summary: dict[str, float | None], prefix: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            # The tables' names of Open Images' numbers ("mAP50") tell the task.
            _add_values(summary, prefix if name == "bbox" else f"{prefix}{name}/", value)
        else:
            known = isinstance(value, (int, float)) and math.isfinite(value)
            summary[f"{prefix}{name}"] = 100.0 * value if known else None


def make_result(
    job: Job, summary: Mapping[str, float | None], state: Mapping[str, Any], threads: int
) -> dict[str, Any]:
    """What result.json holds about a job.

    Args:
        job: that has ended.
        summary: from :func:`read_summary`.
        state: of all its attempts.
        threads: that it had.
    """
    return {
        "hash": job.hash,
        "data": job.data,
        "line": job.line,
        "seed": job.seed,
        "data_seed": job.data_seed,
        "config": _config_name(job.config),
        "overrides": job.overrides,
        "weights_of": job.needs,
        "metrics": dict(summary),
        "iterations": job.iterations,
        "attempts": state["attempts"],
        # Of attempts that were killed together with this command nothing is known.
        "cpu_seconds": round(state["cpu_seconds"], 1),
        "wall_seconds": round(state["wall_seconds"], 1),
        "threads": threads,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": software(),
        "machine": machine(),
    }


def _config_name(path: Path) -> str:
    """The config's path from where the command runs, or its last parts: no folders of one machine."""
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return "/".join(path.parts[-2:])


@cache
def software() -> dict[str, str]:
    """Versions."""
    found = {
        "longtail_det2": longtail_det2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    root = Path(longtail_det2.__file__).resolve().parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            found["commit"] = done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass
    return found


@cache
def machine() -> dict[str, Any]:
    """The class of the machine: processor, cores that this process may use, and GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": _cpu_model(), "cores": cores, "gpu": gpu}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def collect(specification: Specification, jobs: Sequence[Job], layout: Layout) -> list[dict[str, Any]]:
    """Results of the jobs that have one of these settings; written to results.json, too."""
    results = [result for job in jobs if (result := layout.result(job)) is not None]
    document = {
        "title": specification.title,
        "unit": "metrics are in percent; null: a mean over no class",
        "baseline": specification.baseline,
        "data": {
            name: data.options.to_json() if data.options else {"folder": "data that were there"}
            for name, data in specification.data.items()
        },
        "results": results,
    }
    write_json(layout.output / "results.json", document)
    return results
