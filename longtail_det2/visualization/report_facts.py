"""Facts about a run in words: data, model, schedule, software, machine. No host names, no paths."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any

import torch
from detectron2.config import CfgNode

from longtail_det2.config import get_cfg
from longtail_det2.data.store import AnnotationStore
from longtail_det2.visualization.run_data import RunData

__all__ = ["changed_settings", "describe_environment", "describe_run", "describe_store", "duration"]

_PRIVATE = ("OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.STORES", "DATASETS.STATISTICS")
"""Settings that are folders of one machine."""


def duration(seconds: float) -> str:
    """Seconds as "12 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def describe_store(store: AnnotationStore | None) -> str:
    """Sizes of a store; empty without one."""
    if store is None:
        return ""
    hierarchy = store.hierarchy
    kinds = f"{len(hierarchy.leaves):,} leaves" + (
        f", {len(hierarchy.inner):,} inner" if len(hierarchy.inner) else ""
    )
    return (
        f"{len(store):,} images, {store.num_objects:,} objects with {len(store.labels):,} labels "
        f"of {store.num_classes:,} classes ({kinds})"
    )


def describe_run(data: RunData) -> list[tuple[str, str]]:
    """Model, schedule and time of a run, from its config and log."""
    get = data.setting
    model = _joined(get("MODEL.META_ARCHITECTURE"), get("MODEL.BACKBONE.NAME"), get("MODEL.ROI_HEADS.NAME"))
    loss = get("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS")
    iterations = int(data.log.iteration[-1]) + 1 if data.log is not None else None
    schedule = _joined(
        f"{iterations:,} iterations" if iterations is not None else None,
        f"{get('SOLVER.IMS_PER_BATCH')} images each" if get("SOLVER.IMS_PER_BATCH") else None,
        f"{get('SOLVER.OPTIMIZER', 'SGD')}, learning rate {get('SOLVER.BASE_LR')}"
        if get("SOLVER.BASE_LR")
        else None,
        get("SOLVER.LR_SCHEDULER_NAME"),
    )
    seed = get("SEED")
    seconds = None if data.log is None else data.log.seconds
    return [
        ("Model", model),
        ("Classification loss", str(loss or "")),
        ("Schedule", schedule),
        ("Sampler", str(get("DATALOADER.SAMPLER_TRAIN") or "")),
        ("Seed", "" if seed is None else ("not fixed" if seed == -1 else str(seed))),
        ("Time in training steps", "" if seconds is None else duration(seconds)),
    ]


def describe_environment() -> list[tuple[str, str]]:
    """Versions of the software and the class of the machine that made the report."""
    versions = [f"Python {platform.python_version()}"]
    for name, distributions in {
        "torch": ("torch",),
        "torchvision": ("torchvision",),
        "Detectron2": ("detectron2", "pb1-detectron2"),
        "longtail_det2": ("longtail-det2",),
    }.items():
        version = next(filter(None, map(_version, distributions)), "")
        if version:
            versions.append(f"{name} {version}")
    return [("Software", ", ".join(versions)), ("Machine of the report", _machine())]


def changed_settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, value) of the settings that differ from the defaults; those that are folders are left out.

    Configs of another kind (lazy ones) have none of the default keys: nothing is listed then.
    """
    defaults = _flat(get_cfg())
    found = []
    for key, value in sorted(_flat(config).items()):
        if key not in defaults or key in _PRIVATE or _plain(value) == _plain(defaults[key]):
            continue
        if key == "MODEL.WEIGHTS" and value:
            value = PurePath(str(value)).name
        found.append((key, str(value)))
    return found


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, (CfgNode, dict)):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + str(key)] = value
    return flat


def _plain(value: Any) -> Any:
    """Tuples and lists are the same thing in YAML."""
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [f"{platform.system()}, {cores} CPU core{'s' if cores > 1 else ''}"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory")
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    else:
        parts.append("no GPU")
    return ", ".join(parts)
