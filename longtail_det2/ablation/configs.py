"""What a job's config says: for its hash, for its cost, and to find misspelt keys before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from longtail_det2.config import get_cfg
from longtail_det2.config_files import load_cfg, load_lazy

from .specification import Overrides

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./+-]+")


@dataclass(frozen=True)
class ConfigFacts:
    """What a config with its overrides says.

    Attributes:
        settings: what it sets, as plain data: of a YAML config what differs from the defaults.
        iterations: length of the training.
    """

    settings: dict[str, Any]
    iterations: int


def to_words(overrides: Overrides, lazy: bool) -> list[str]:
    """Overrides as they stand on the command line of the train scripts."""
    if lazy:
        return [f"{key}={_hydra(value)}" for key, value in overrides.items()]
    return [word for key, value in overrides.items() for word in (key, _yacs(value))]


def read_config(path: Path, overrides: Overrides) -> ConfigFacts:
    """Facts of a config file with overrides.

    Raises:
        ConfigError: see :func:`longtail_det2.config_files.load_cfg` and `load_lazy`.
    """
    words = tuple(to_words(overrides, path.suffix == ".py"))
    return _read_lazy(path, words) if path.suffix == ".py" else _read_yaml(path, words)


@cache
def _read_yaml(path: Path, words: tuple[str, ...]) -> ConfigFacts:
    cfg = load_cfg(path, words)
    defaults = _default_settings()
    flat = _flat(yaml.safe_load(cfg.dump()))
    # Keys that keep their default stay out, so that a key which a later version adds changes no hash.
    settings = {key: value for key, value in flat.items() if key not in defaults or defaults[key] != value}
    return ConfigFacts(settings, int(cfg.SOLVER.MAX_ITER))


@cache
def _default_settings() -> dict[str, Any]:
    return _flat(yaml.safe_load(get_cfg().dump()))


@cache
def _read_lazy(path: Path, words: tuple[str, ...]) -> ConfigFacts:
    cfg = load_lazy(path, words)
    plain = OmegaConf.to_container(cfg, resolve=False)
    settings = json.loads(json.dumps(plain, default=_name_of))
    return ConfigFacts(settings, int(cfg.train.max_iter))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _name_of(value: Any) -> str:
    """Functions and classes by name, other objects by type: nothing that differs between processes."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _yacs(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _hydra(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(_hydra(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str) and not _PLAIN_WORD.fullmatch(value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
