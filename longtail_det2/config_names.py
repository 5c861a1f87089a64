"""Config files by name: those of this project, in a checkout and after an installation.

A config's name is its path below ``configs/``; those of a method are called by their path from the root of a
checkout, ``projects/METHOD/configs/...``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from longtail_det2.utils.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
_PACKAGED = _PACKAGE / "model_zoo/configs"
_CHECKOUT = _PACKAGE.parent / "configs"
_PROJECTS = "projects"
_SUFFIXES = {".yaml": (".yaml", ".yml"), ".py": (".py",)}


def config_root() -> Path:
    """Return the folder of the configs: beside the package in a checkout, else what was installed with it.

    Raises:
        ConfigError: neither exists.
    """
    # A checkout may also hold a copy that a build left behind; its own folder is never out of date.
    for root in (_CHECKOUT, _PACKAGED):
        if (root / "Base-RCNN-FPN.yaml").is_file():
            return root
    raise ConfigError(
        f"the configs are neither at {_CHECKOUT} nor at {_PACKAGED}: the installation is incomplete, install "
        "the package again"
    )


def list_configs() -> list[str]:
    """List the names of all configs, YAML and lazy, without the parts that they are made of."""
    return sorted(
        _name_in(folder, path)
        for folder in _folders()
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES
        and "common" not in path.relative_to(folder).parts
        and not path.name.startswith("Base-")
    )


def get_config_file(name: str) -> str:
    """Return the path of a config.

    Args:
        name: such as "shapes/faster_rcnn_tiny_softmax_shapes.yaml".

    Raises:
        ConfigError: there is none of that name.
    """
    root = config_root().resolve()
    path = (root.parent if name.startswith(f"{_PROJECTS}/") else root) / name
    if not os.path.isfile(path) or not name_of_config(path):
        known = list_configs()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is not in the model zoo.{hint} It has:\n  " + "\n  ".join(known))
    return str(path)


def find_config_file(name: str | os.PathLike[str], suffix: str) -> Path:
    """Return the path of a config file, given as a path or as its name in the model zoo.

    Args:
        name: path or name.
        suffix: ".yaml" or ".py", the kind that is wanted.

    Raises:
        ConfigError: there is no such file, or it is of the other kind.
    """
    path = Path(name)
    if not os.path.isfile(path):
        try:
            path = Path(get_config_file(str(name)))
        except ConfigError as error:
            raise ConfigError(f"{name} is no file, and {error}") from None
    if path.suffix not in _SUFFIXES[suffix]:
        other = "scripts/lazyconfig_train_net.py" if suffix == ".yaml" else "scripts/train_net.py"
        raise ConfigError(f"{path} is no {suffix} config; configs of its kind are for {other}")
    return path


def name_of_config(path: str | os.PathLike[str]) -> str:
    """Return what :func:`get_config_file` calls a config file; "" if it is none of the project's."""
    path = Path(path).resolve()
    try:
        return next((_name_in(folder, path) for folder in _folders() if folder in path.parents), "")
    except ConfigError:
        return ""


def _folders() -> Iterator[Path]:
    """The folder of the configs, and those of the projects, which lie the same way in an installation."""
    root = config_root()
    yield root
    yield from sorted((root.parent / _PROJECTS).glob("*/configs"))


def _name_in(folder: Path, path: Path) -> str:
    """The name of a file of one of the folders; only those of projects are named from the root."""
    of_project = folder.parents[1].name == _PROJECTS
    return path.relative_to(folder.parents[2] if of_project else folder).as_posix()
