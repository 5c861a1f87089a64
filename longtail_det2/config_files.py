"""Reading config files; an error is one line that names the file, the key and the nearest one that exists."""

from __future__ import annotations

import builtins
import difflib
import inspect
import os
import re
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
from longtail_det2.config_names import config_root, find_config_file, get_config_file
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.wording import pluralize

_BASE_KEY = "_BASE_"


def load_cfg(config_file: str | os.PathLike[str] = "", options: Sequence[str] = ()) -> CfgNode:
    """Merge a YAML config, and options from the command line, into this project's defaults.

    OUTPUT_DIR is ./output/NAME OF THE FILE unless one of the files sets it.

    Args:
        config_file: path, or the name of a config of the model zoo; "" for the defaults alone.
        options: KEY VALUE KEY VALUE ...; a key that holds several values also takes them separated by commas.

    Raises:
        ConfigError: there is no such file, it is not YAML, a key does not exist, stands twice, or a value is
            of the wrong kind.
    """
    cfg = get_cfg()
    if config_file:
        path = find_config_file(config_file, ".yaml")
        cfg.OUTPUT_DIR = f"./output/{path.stem}"
        for file, content in _yaml_chain(path):
            _merge(cfg, content, str(file))
    merge_options(cfg, options)
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

    ``train.output_dir`` is ./output/NAME OF THE FILE unless the file sets it.

    Args:
        config_file: path, or the name of a config of the model zoo.
        overrides: "path.to.key=value", Hydra's syntax.

    Raises:
        ConfigError: there is no such file, it cannot be executed, or a key is named that the config does not
            have or that the object to be built does not take.
    """
    path = find_config_file(config_file, ".py")
    cfg = _execute(path)
    if OmegaConf.select(cfg, "train.output_dir") == "":
        cfg.train.output_dir = f"./output/{path.stem}"
    _refuse_flags(overrides)
    for override in overrides:
        key, equals, _ = override.lstrip("~").partition("=")
        if not equals:
            raise ConfigError(f"{override!r} (command line): expected path.to.key=value")
        if not key.startswith("+"):
            _check_override(cfg, key)
    _check_lazy(cfg, str(path))
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    except (HydraException, OmegaConfBaseException, KeyError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"command line: {error}") from None
    _check_lazy(cfg, "command line")
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


def _yaml_chain(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file and the content of the config that a config is based on, and so on, then its own."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: the config is its own {_BASE_KEY}")
    content = _read_yaml(path)
    base = content.pop(_BASE_KEY, None)
    if base is not None:
        base_path = path.parent / os.path.expanduser(str(base))
        try:
            base_path = base_path if base_path.is_file() else Path(get_config_file(str(base)))
        except ConfigError as error:
            raise ConfigError(f"{path}: its {_BASE_KEY} is no file ({base_path}), and {error}") from None
        yield from _yaml_chain(base_path, (*above, path.resolve()))
    yield path, content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML config: {error}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(content).__name__}")
    return content


def _merge(cfg: CfgNode, content: dict[str, Any], source: str) -> None:
    before = cfg.clone()
    try:
        cfg.merge_from_other_cfg(CfgNode(_with_floats(content, cfg)))
    except (KeyError, ValueError, AssertionError, TypeError, RecursionError) as error:
        message = str(error.args[0] if error.args else error)
        missing = message.partition("Non-existent config key: ")[2]
        wrong = message.partition("for config key: ")[2]
        if missing:
            while isinstance(below := _value_at(content, missing), Mapping) and below:
                missing = f"{missing}.{next(iter(below))}"
            message = f"there is no config key {missing!r}.{_hint(missing, list(_all_keys(cfg)))}"
        elif wrong:
            default, value = _value_at(before, wrong), _value_at(content, wrong)
            form = f"be of the kind of its default, {default!r}"
            if isinstance(default, CfgNode):
                form = f"be a node with some of the keys {', '.join(default)}"
            shown = "a mapping" if isinstance(value, Mapping) else repr(value)
            message = f"{wrong} is {shown}; it must {form}"
        raise ConfigError(f"{source}: {message}") from None
    for key in list(_all_keys(before)):
        known = _value_at(before, key)
        if isinstance(known, CfgNode) and known.is_new_allowed():
            _value_at(cfg, key).set_new_allowed(True)  # what it got is free as well
        elif isinstance(known, (tuple, list)):
            _check_elements(known, _value_at(cfg, key), key, source)


def _with_floats(content: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with floats for whole numbers where the default is a float: 0 for 0.5."""
    result = dict(content)
    for key, value in content.items():
        default = known.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            result[key] = _with_floats(value, default)
        elif isinstance(default, float) and re.fullmatch(r"[+-]?\d+", str(value)):
            result[key] = float(str(value))
    return result


def _check_elements(known: Sequence[Any], value: Any, key: str, source: str) -> None:
    """Check that a sequence's elements are of the default's kind; a default without elements allows any."""
    kinds, found = (set(_leaves(one)) for one in (known, value))
    if kinds and not found <= kinds:
        raise ConfigError(f"{source}: {key} is {value}; it must be of the form of {known}")


def _leaves(value: Sequence[Any], depth: int = 1) -> Iterator[tuple[int, str]]:
    """Depth and kind of a sequence's elements."""
    for one in value:
        if isinstance(one, (tuple, list)) and depth < 8:  # one may contain itself
            yield from _leaves(one, depth + 1)
        else:
            yield depth, _kind(one)


def _kind(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def _all_keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys of values, and of nodes; none below nodes with free keys."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and not (isinstance(value, CfgNode) and value.is_new_allowed()):
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
        frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename[:1] != "<"]
        own = [one for one in frames if os.path.basename(one.filename) == path.name]
        where = f"{path}, line {own[-1].lineno}" if own else str(path)
        below = "" if frames[-1:] == own[-1:] else f" ({frames[-1].filename}, line {frames[-1].lineno})"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}{below}") from error
    finally:
        builtins.__import__ = importer  # which Detectron2 leaves replaced when a config raises
    return cfg


def _check_override(cfg: DictConfig, key: str) -> None:
    """Check that a key exists, or belongs to an object, whose arguments are checked once it is set."""
    above, _, last = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, above) if above else cfg
    except OmegaConfBaseException:
        node = None
    in_list = isinstance(node, ListConfig) and last.isdigit() and int(last) < len(node)
    if not in_list and not (isinstance(node, DictConfig) and (last in node or "_target_" in node)):
        raise ConfigError(
            f"there is no config key {key!r} (command line).{_hint(key, list(_all_keys(_plain(cfg))))} "
            "A new key is written with a plus sign: +key=value"
        )


def _plain(cfg: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(cfg, resolve=resolve)


def _arguments(node: Mapping[str, Any]) -> set[str] | None:
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


def _check_lazy(cfg: DictConfig, source: str) -> None:
    """Check what objects are given, and the keys of ``train``, which no class takes as arguments."""
    _check_arguments(_plain(cfg), "", source)
    if isinstance(cfg.get("train"), DictConfig):
        known = LazyConfig.load(str(config_root() / "common/train.py"), "train")
        _check_like(_plain(cfg.train, resolve=True), _plain(known), "train", source)


def _check_arguments(node: Any, key: str, source: str) -> None:
    """Check that every object that a lazy config describes takes what it is given."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    target = node.get("_target_") if isinstance(node, dict) else None
    known = _arguments(node) if isinstance(node, dict) and target is not None else None
    for name, value in items:
        here = f"{key}.{name}".lstrip(".")
        if known is not None and name not in known and not str(name).startswith("_"):
            hint = _hint(here, [f"{key}.{one}" for one in known])
            called = getattr(target, "__name__", target)
            raise ConfigError(f"{source}: {here}: {called} has no argument {name!r}.{hint}")
        _check_arguments(value, here, source)


def _check_like(node: dict[str, Any], known: dict[str, Any], key: str, source: str) -> None:
    """Check for near misses of known keys, and for values of another kind."""
    for name, value in node.items():
        here, default = f"{key}.{name}", known.get(name)
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.8)
            if near:
                raise ConfigError(f"{source}: there is no key {here!r}. Did you mean '{key}.{near[0]}'?")
        elif isinstance(default, dict) and isinstance(value, dict):
            _check_like(value, default, here, source)
        elif value not in (None, "???") and _kind(value) != _kind(default):
            raise ConfigError(f"{source}: {here} is {value!r}; it must be like {default!r}")
