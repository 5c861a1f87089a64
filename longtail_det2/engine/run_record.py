"""run.json: which config, options, seed, versions and machine a run has; written at its start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from longtail_det2.config_names import name_of_config
from longtail_det2.utils.io import write_json

RUN_FILE = "run.json"
_LIBRARIES = ("longtail_det2", "torch", "torchvision", "detectron2", "numpy", "pyarrow")


def write_run_record(
    output_dir: str,
    *,
    config_file: str = "",
    options: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    seed: int,
) -> None:
    """Write run.json.

    Args:
        output_dir: folder of the run.
        config_file: path or name; what is noted is the name in the model zoo, or the file's without its
            folders.
        options: config options of the command line.
        arguments: its other arguments.
        seed: of the run.

    Raises:
        OSError: the file cannot be written.
    """
    name = name_of_config(config_file) if os.path.isfile(config_file) else config_file
    content = {
        "config": name or os.path.basename(config_file),
        "in_model_zoo": bool(name),
        "options": list(options),
        "arguments": dict(arguments or {}),
        "seed": seed,
        "processes": comm.get_world_size(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {one: getattr(import_module(one), "__version__", "unknown") for one in _LIBRARIES},
        "commit": _commit(),
        "machine": _machine(),
    }
    write_json(Path(output_dir) / RUN_FILE, content, indent=1)


def read_run_record(output_dir: str | Path) -> dict[str, Any]:
    """Return the content of run.json; {} where there is none, or none that can be read."""
    try:
        content = json.loads((Path(output_dir) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, with a plus sign if files have changed."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--dirty=+", "--exclude=*"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }
