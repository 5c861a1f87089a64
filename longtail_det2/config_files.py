"""Reading config files; an error is one line that names the file, the key and the nearest one that exists."""

from __future__ import annotations

import builtins
import difflib
import inspect
import os
import traceback
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from longtail_det2.config import get_cfg
from longtail_det2.config_names import config_root, find_config_file
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.wording import pluralize

_BASE_KEY = "_BASE_"
_MAX_DEPTH = 32
"""Mappings and lists of a YAML file may be nested this deep."""
_NESTED_OR_FLAT = ("SOLVER.STEPS",)
"""Keys that hold numbers, or lists of numbers."""


def load_cfg(config_file: str | os.PathLike[str] = "", options: Sequence[str] = ()) -> CfgNode:
    """Merge a YAML config, and options from the command line, into this project's defaults.

    Args:
        config_file: path, or the name of a config of the model zoo; "" for the defaults alone.
        options: KEY VALUE KEY VALUE ...; a key that holds several values also takes them separated by commas.

    Raises:
        ConfigError: there is no such file, it is not YAML, a key does not exist, stands twice, or a value is
            of the wrong kind.
    """
    cfg = get_cfg()
    if config_file:
        merged: dict[str, Any] = {}
        for file, content in reversed(list(_yaml_chain(find_config_file(config_file, ".yaml")))):
            _merge(cfg.clone(), content, str(file))
            _update(merged, content)
        _merge(cfg, merged, str(config_file))
    merge_options(cfg, options)
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std) or not all(one > 0 for one in std):
        raise ConfigError(
            f"{config_file or 'command line'}: MODEL.PIXEL_STD is {std}, MODEL.PIXEL_MEAN {mean}; both need "
            "as many numbers, and those of PIXEL_STD must be positive"
        )
    vars(cfg)["_CONFIG_FILE"] = str(config_file)  # for the record of a run that is started with it
    return cfg


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Set keys from KEY VALUE pairs as they stand on a command line; in place.

    Raises:
        ConfigError: an odd number of words, a key that does not exist, or a value of the wrong kind.
    """
    _refuse_flags(options)
    if len(options) % 2:
        raise ConfigError(
            f"options must come in pairs KEY VALUE, got {pluralize(len(options), 'word')}: "
            f"{' '.join(options)}"
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = _as_sequence(value) if isinstance(_value_at(cfg, key), (tuple, list)) else value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(cfg, nested, "command line")


def load_lazy(config_file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Load a lazy (Python) config, which runs it, and apply overrides from the command line.

    Args:
        config_file: path, or the name of a config of the model zoo.
        overrides: "path.to.key=value", Hydra's syntax.

    Raises:
        ConfigError: there is no such file, it cannot be executed, or a key is named that the config does not
            have or that the object to be built does not take. Errors inside modules that the config imports
            pass as they are.
    """
    path = find_config_file(config_file, ".py")
    cfg = _execute(path)
    _refuse_flags(overrides)
    for override in overrides:
        key, equals, _ = override.lstrip("+~").partition("=")
        if not equals:
            raise ConfigError(f"{override!r} (command line): expected path.to.key=value")
        if not override.startswith("+"):
            _check_lazy_key(cfg, key)
    _check_arguments(cfg, "", str(path))
    _check_train(cfg.get("train"), str(path))
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    except (HydraException, OmegaConfBaseException, KeyError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"command line: {error}") from None
    _check_arguments(cfg, "", "command line")
    _check_train(cfg.get("train"), "command line")
    return cfg


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice; YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


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
        if not os.path.isfile(base_path):
            raise ConfigError(f"{path}: its {_BASE_KEY} {base!r} is no file ({base_path})")
        path = base_path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{path}: not a YAML config: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not a YAML config: nested too deep") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(content).__name__}")
    _check_depth(content, str(path))
    return content


def _check_depth(node: Any, source: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{source}: nested deeper than {_MAX_DEPTH}, or a value that contains itself")
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise ConfigError(f"{source}: the key {key!r} is no text but {type(key).__name__}")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_depth(value, source, depth + 1)


def _update(into: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _merge(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    before = cfg.clone()
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except KeyError as error:
        message = str(error.args[0])
        missing = message.partition("Non-existent config key: ")[2]
        if not missing:
            raise ConfigError(f"{source}: {message}") from None
        while isinstance(below := _value_at(content, missing), Mapping) and below:
            missing = f"{missing}.{next(iter(below))}"
        hint = _hint(missing, list(_all_keys(cfg)))
        raise ConfigError(f"{source}: there is no config key {missing!r}.{hint}") from None
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{source}: {_kind_error(before, content, str(error))}") from None
    for key in list(_all_keys(before)):
        known = _value_at(before, key)
        if isinstance(known, CfgNode) and known.is_new_allowed():
            _value_at(cfg, key).set_new_allowed(True)  # what it got is free as well
        elif isinstance(known, (tuple, list)):
            _check_elements(known, _value_at(cfg, key), key, source)


def _kind_error(cfg: CfgNode, content: dict[str, Any], message: str) -> str:
    """What yacs says about a value of the wrong kind, in one line."""
    key = message.partition("for config key: ")[2]
    default, value = _value_at(cfg, key), _value_at(content, key)
    if not key:
        return message
    if isinstance(default, CfgNode):
        return f"{key} is {value!r}; it is a node with the keys {', '.join(default)}"
    wrong = value if not isinstance(value, Mapping) else "a mapping"
    return f"{key} is {wrong!r}; it must be of the kind of its default, {default!r}"


def _check_elements(known: Sequence[Any], value: Any, key: str, source: str) -> None:
    """Check that a sequence's elements are of the default's kind; a default without elements allows any."""
    kinds = set(_leaves(known))
    found = set(_leaves(value)) if isinstance(value, (tuple, list)) else set()
    if key in _NESTED_OR_FLAT:
        found = {(1, kind) for _, kind in found}
    if kinds and not found <= kinds:
        raise ConfigError(f"{source}: {key} is {value}; it must be of the form of {known}")


def _leaves(value: Sequence[Any], depth: int = 1) -> Iterator[tuple[int, str]]:
    """Depth and kind of a sequence's elements."""
    for one in value:
        if isinstance(one, (tuple, list)):
            yield from _leaves(one, depth + 1)
        else:
            number = isinstance(one, (int, float)) and not isinstance(one, bool)
            yield depth, "number" if number else type(one).__name__


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Keys of values, and of nodes."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode) and not value.is_new_allowed():
            yield from _all_keys(value, f"{prefix}{key}.")


def _hint(key: str, known: Sequence[str]) -> str:
    """What the user may have meant: the same last word elsewhere, else the most similar key."""
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, near or known, n=1, cutoff=0.5) or near[:1]
    return f" Did you mean {near[0]!r}?" if near else ""


def _value_at(cfg: Mapping[str, Any], key: str) -> Any:
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
    """A tuple from "a,b" or from Python's notation of one; a text that begins a bracket is left to fail."""
    try:
        parsed = literal_eval(value)
    except (ValueError, SyntaxError):
        if value[:1] in ("[", "("):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return parsed if isinstance(parsed, (tuple, list)) else (parsed,)


def _execute(path: Path) -> DictConfig:
    importer = builtins.__import__
    try:
        cfg: Any = LazyConfig.load(str(path))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if os.path.basename(frame.filename) == path.name]
        # An error below the config, in a module that it imports, is told with its traceback.
        deeper = frames[-1].filename if frames else ""
        if own and frames[-1] is not own[-1] and not _is_of_loader(deeper):
            raise
        where = f"{path}, line {own[-1].lineno}" if own else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    finally:
        builtins.__import__ = importer  # which Detectron2 leaves replaced when a config raises
    return cfg


def _is_of_loader(file: str) -> bool:
    """Whether code is what loads lazy configs: Detectron2's, the import system's, or omegaconf's."""
    parts = Path(file).parts
    return file.startswith("<frozen") or parts[-3:-1] == ("detectron2", "config") or "omegaconf" in parts


def _check_lazy_key(cfg: DictConfig, key: str) -> None:
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts):
        if OmegaConf.is_list(node) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            continue
        if not isinstance(node, DictConfig) or (part not in node and part not in (_arguments(node) or ())):
            parent = ".".join(parts[:depth])
            known = [f"{parent}.{name}".lstrip(".") for name in node] if isinstance(node, DictConfig) else []
            if isinstance(node, DictConfig) and "_target_" in node and _arguments(node) is None:
                return  # it takes any argument
            wrong = ".".join(parts[: depth + 1])
            raise ConfigError(
                f"there is no config key {wrong!r} (command line).{_hint(wrong, known)} "
                "A new key is written with a plus sign: +key=value"
            )
        if part not in node:
            return
        node = None if OmegaConf.is_missing(node, part) else node[part]


def _arguments(node: DictConfig) -> set[str] | None:
    """Names of the arguments of what a lazy node describes; None if it takes any, or is unknown.

    Detectors, heads and losses of this project and of Detectron2 hand ``**kwargs`` to their base class, whose
    arguments count.
    """
    target = node.get("_target_")
    if not callable(target):
        return None
    makers: list[Any] = [target]
    if inspect.isclass(target) and issubclass(target, nn.Module):
        makers = [vars(one)["__init__"] for one in inspect.getmro(target) if "__init__" in vars(one)]
    names: set[str] = set()
    for maker in makers:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except (TypeError, ValueError):  # written in C
            return None
        names |= {one.name for one in parameters}
        if maker is nn.Module.__init__ or all(one.kind is not one.VAR_KEYWORD for one in parameters):
            return names
        if not maker.__module__.startswith(("longtail_det2.", "detectron2.")):
            return None
    return None


def _check_arguments(node: Any, key: str, source: str) -> None:
    """Check that every object that a lazy config describes takes what it is given."""
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            _check_arguments(_raw(node, index), f"{key}.{index}", source)
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    known = _arguments(node) if "_target_" in node else None
    for name in node:
        here = f"{key}.{name}".lstrip(".")
        if known is not None and name not in known and not str(name).startswith("_"):
            target = getattr(node._target_, "__name__", node._target_)
            hint = _hint(here, [f"{key}.{one}" for one in known])
            raise ConfigError(f"{source}: {here}: {target} has no argument {name!r}.{hint}")
        _check_arguments(_raw(node, name), here, source)


def _raw(node: Any, key: Any) -> Any:
    """A container below a lazy node; None for values, and for references to other keys."""
    child = node._get_node(key)
    return child if isinstance(child, (DictConfig, ListConfig)) and not child._is_interpolation() else None


def _check_train(train: Any, source: str) -> None:
    """Check the keys of ``train``, which no class takes as arguments: near misses, and kinds of values."""
    if not isinstance(train, DictConfig):
        return
    known: Any = LazyConfig.load(str(config_root() / "common/train.py"), "train")
    _check_like(train, known, "train", source)


def _check_like(node: DictConfig, known: DictConfig, key: str, source: str) -> None:
    for name in node:
        here, value = f"{key}.{name}", None if OmegaConf.is_missing(node, name) else node[name]
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.8)
            if near:
                raise ConfigError(f"{source}: there is no key {here!r}. Did you mean '{key}.{near[0]}'?")
        elif isinstance(known[name], DictConfig) and isinstance(value, DictConfig):
            _check_like(value, known[name], here, source)
        elif value is not None and not _same_kind(value, known[name]):
            raise ConfigError(f"{source}: {here} is {value!r}; it must be like {known[name]!r}")


def _same_kind(value: Any, known: Any) -> bool:
    if isinstance(known, (int, float)) and not isinstance(known, bool):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(known))
