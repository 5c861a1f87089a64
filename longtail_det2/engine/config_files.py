"""Reading configs, with an error that names the file and the nearest key when something is misspelt."""

from __future__ import annotations

import builtins
import difflib
import inspect
import logging
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longtail_det2.config import get_cfg
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.wording import counted

logger = logging.getLogger(__name__)

_BASE_KEY = "_BASE_"


def load_cfg(config_file: str | os.PathLike[str] = "", options: Sequence[str] = ()) -> CfgNode:
    """A YAML config on top of the defaults, with options from the command line on top of that.

    Args:
        config_file: path, or the name of a config of the model zoo; "" for the defaults alone.
        options: KEY VALUE KEY VALUE ...; a key that holds several values also takes them separated by commas.

    Raises:
        ConfigError: there is no such file, it is no YAML, a key does not exist or a value has the wrong type.
    """
    cfg = get_cfg()
    if config_file:
        path = find_config_file(config_file, ".yaml")
        merged: dict[str, Any] = {}
        for file, content in reversed(list(_yaml_chain(path))):
            _check_keys(content, cfg, str(file))
            _merge(cfg.clone(), content, str(file))
            _update(merged, content)
        _merge(cfg, merged, str(path))
    merge_options(cfg, options)
    return cfg


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Sets keys from KEY VALUE pairs as they stand on a command line; in place.

    Raises:
        ConfigError: an odd number of words, a key that does not exist, or a value of the wrong type.
    """
    _refuse_flags(options)
    if len(options) % 2:
        raise ConfigError(
            f"options must come in pairs KEY VALUE, got {counted(len(options), 'word')}: {' '.join(options)}"
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        default = _value_at(cfg, key)
        if default is None and key not in set(_all_keys(cfg)):
            if not _below_free_node(key, cfg):
                hint = _hint(key, _all_keys(cfg))
                raise ConfigError(f"there is no config key {key!r} (command line).{hint}")
            _merge(cfg, _nested(key, value), f"{key} (command line)")
            continue
        if isinstance(default, (tuple, list)):
            value = _as_sequence(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise ConfigError(f"{key} (command line): {error}") from None


def load_lazy(config_file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """A lazy (Python) config with overrides from the command line.

    Args:
        config_file: path, or the name of a config of the model zoo.
        overrides: "path.to.key=value", Hydra's syntax.

    Raises:
        ConfigError: there is no such file, it cannot be executed, or an override names a key that the config
            does not have and the object to be built does not take.
    """
    path = find_config_file(config_file, ".py")
    importer = builtins.__import__
    try:
        cfg: Any = LazyConfig.load(str(path))
    except (ImportError, SyntaxError, NameError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        builtins.__import__ = importer  # which Detectron2 leaves replaced when a config raises
    _refuse_flags(overrides)
    for override in overrides:
        key, equals, _ = override.lstrip("+~").partition("=")
        if not equals:
            raise ConfigError(f"{override!r} (command line): expected path.to.key=value")
        if not override.startswith("+"):
            _check_lazy_key(cfg, key)
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except (HydraException, OmegaConfBaseException, KeyError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"command line: {error}") from None


def find_config_file(name: str | os.PathLike[str], suffix: str) -> Path:
    """The path of a config file, given as a path or as its name in the model zoo.

    Raises:
        ConfigError: there is no such file, or it does not end in `suffix`.
    """
    from longtail_det2 import model_zoo

    path = Path(name)
    if not path.is_file():
        try:
            path = Path(model_zoo.get_config_file(str(name)))
        except ConfigError as error:
            raise ConfigError(f"{name} is no file, and {error}") from None
    allowed = {".yaml": (".yaml", ".yml"), ".py": (".py",)}[suffix]
    if path.suffix not in allowed:
        other = "scripts/lazyconfig_train_net.py" if suffix == ".yaml" else "scripts/train_net.py"
        raise ConfigError(f"{path} is no {suffix} config; configs of its kind are for {other}")
    return path


def log_config_file(name: str) -> None:
    """Notes in the log which config a run was started with; what is published of the run says so too.

    Args:
        name: as given on the command line; "" notes nothing.
    """
    from longtail_det2 import model_zoo
    from longtail_det2.model_zoo.run_facts import config_note

    if name:
        path = name if os.path.isfile(name) else model_zoo.get_config_file(name)
        logger.info(config_note(path))


def _yaml_chain(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file and the content of a config, then of the file that it is based on, and so on."""
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            raise ConfigError(f"{path}: the config is its own {_BASE_KEY}")
        seen.append(path.resolve())
        content = _read_yaml(path)
        base = content.pop(_BASE_KEY, None)
        yield path, content
        if base is None:
            return
        if not isinstance(base, str):
            raise ConfigError(f"{path}: {_BASE_KEY} must be one file name, got {base!r}")
        base_path = path.parent / os.path.expanduser(base)
        if not base_path.is_file():
            raise ConfigError(f"{path}: its {_BASE_KEY} {base!r} is no file ({base_path})")
        path = base_path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML config: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(content).__name__}")
    return content


def _update(into: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _merge(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except (ValueError, AssertionError, KeyError) as error:
        raise ConfigError(f"{source}: {error}") from None
    for key in _free_nodes(cfg):  # what they got is free as well
        _value_at(cfg, key).set_new_allowed(True)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _free_nodes(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Keys of the nodes that take any key, but for those within such nodes."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            if value.is_new_allowed():
                yield f"{prefix}{key}"
            else:
                yield from _free_nodes(value, f"{prefix}{key}.")


def _below_free_node(key: str, cfg: CfgNode) -> bool:
    return any(key.startswith(f"{node}.") for node in _free_nodes(cfg))


def _check_keys(content: Mapping[str, Any], cfg: CfgNode, source: str) -> None:
    known = set(_all_keys(cfg))
    for key in _all_keys(content):
        if key not in known and not _below_free_node(key, cfg):
            raise ConfigError(f"{source}: there is no config key {key!r}.{_hint(key, known)}")


def _all_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _all_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _hint(key: str, known: Any) -> str:
    """What the user may have meant: the same last word elsewhere, else the most similar key."""
    known = list(known)
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, near or known, n=1, cutoff=0.5) or near[:1]
    return f" Did you mean {near[0]!r}?" if near else ""


def _value_at(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _refuse_flags(options: Sequence[str]) -> None:
    for word in options:
        if word.startswith("--"):
            raise ConfigError(f"{word} (command line): flags come before the config options")


def _as_sequence(value: str) -> Any:
    """A tuple from "a,b" or from Python's notation of one; anything else as it is, for yacs to judge."""
    try:
        parsed = literal_eval(value)
    except (ValueError, SyntaxError):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return parsed if isinstance(parsed, (tuple, list)) else (parsed,)


def _check_lazy_key(cfg: DictConfig, key: str) -> None:
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts):
        if OmegaConf.is_list(node) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            continue
        if not isinstance(node, DictConfig) or (part not in node and not _takes(node, part)):
            parent = ".".join(parts[:depth])
            known = [f"{parent}.{name}".lstrip(".") for name in node] if isinstance(node, DictConfig) else []
            wrong = ".".join(parts[: depth + 1])
            raise ConfigError(
                f"there is no config key {wrong!r} (command line).{_hint(wrong, known)} "
                "A new key is written with a plus sign: +key=value"
            )
        if part not in node:
            return
        node = node._get_node(part) if OmegaConf.is_missing(node, part) else node[part]


def _takes(node: DictConfig, name: str) -> bool:
    """Whether the object that a lazy node describes has an argument of that name."""
    target = node.get("_target_")
    if not callable(target):
        return False
    parameters = inspect.signature(target).parameters.values()
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
