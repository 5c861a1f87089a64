"""Configs that come with the project, by name, and their published weights.

A config's name is its path below ``configs/``; those of a method are called by their path from the root of a
checkout, ``projects/METHOD/configs/...``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode

from longtail_det2.config import NUM_CLASSES_FROM_DATA
from longtail_det2.utils.errors import ConfigError

from .weights import read_weights
from .zoo_index import find_checkpoint

if TYPE_CHECKING:
    from torch import nn

_PACKAGED = Path(__file__).resolve().parent / "configs"
_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
_PROJECTS = "projects"


def config_root() -> Path:
    """Folder of the configs: beside the package in a checkout, else what the installation brought along.

    Raises:
        ConfigError: neither exists.
    """
    # A checkout may also hold a copy that a build left behind; its own folder is never out of date.
    for root in (_CHECKOUT, _PACKAGED):
        if (root / "Base-RCNN-FPN-OpenImages.yaml").is_file():
            return root
    raise ConfigError(
        f"the configs are neither at {_CHECKOUT} nor at {_PACKAGED}: the installation is incomplete, install "
        "the package again"
    )


def list_configs() -> list[str]:
    """Names of all configs, YAML and lazy, without the parts that they are made of."""
    return sorted(
        _name_in(folder, path)
        for folder in _folders()
        for path in folder.rglob("*")
        if path.suffix in (".yaml", ".py")
        and "common" not in path.relative_to(folder).parts
        and not path.name.startswith("Base-")
    )


def _folders() -> Iterator[Path]:
    """The folder of the configs, and those of the projects, which lie the same way in an installation."""
    root = config_root()
    yield root
    yield from sorted((root.parent / _PROJECTS).glob("*/configs"))


def _name_of(path: Path) -> str | None:
    """The name of a file in one of the folders; None elsewhere."""
    return next((_name_in(folder, path) for folder in _folders() if folder in path.parents), None)


def _name_in(folder: Path, path: Path) -> str:
    """The name of a file of one of the folders; only those of projects are named from the root."""
    of_project = folder.parents[1].name == _PROJECTS
    return path.relative_to(folder.parents[2] if of_project else folder).as_posix()


def get_config_file(name: str) -> str:
    """Path of a config.

    Args:
        name: such as "shapes/faster_rcnn_tiny_softmax_shapes.yaml".

    Raises:
        ConfigError: there is none of that name.
    """
    root = config_root().resolve()
    path = (root.parent if name.startswith(f"{_PROJECTS}/") else root) / name
    if not path.is_file() or _name_of(path.resolve()) is None:
        known = list_configs()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is not in the model zoo.{hint} It has:\n  " + "\n  ".join(known))
    return str(path)


def name_of_config(path: str | os.PathLike[str]) -> str:
    """What :func:`get_config_file` calls a config file; "" if it is none of the project's."""
    try:
        return _name_of(Path(path).resolve()) or ""
    except ConfigError:
        return ""


def get_checkpoint(name: str) -> str:
    """Path of a config's published weights on this machine, fetched if need be, their hash verified.

    They are looked for in ``$LONGTAIL_DET2_ZOO`` (a folder, or a repository "owner/name" on the Hugging Face
    hub) and in the list that comes with the package; see :mod:`.zoo_index`. The path serves as
    ``MODEL.WEIGHTS``.

    Args:
        name: see :func:`get_config_file`; the lazy twin of a config has the same weights.

    Raises:
        ConfigError: none are published, they cannot be fetched, or the file is damaged.
    """
    return str(find_checkpoint(name))


def get_config(name: str, trained: bool = False) -> Any:
    """A config, ready to be changed.

    Args:
        name: see :func:`get_config_file`.
        trained: also point it at trained weights, and where it leaves the number of classes to the data, set
            it to theirs.

    Returns:
        A Detectron2 ``CfgNode`` for a YAML config, an omegaconf ``DictConfig`` for a lazy one.

    Raises:
        ConfigError: there is none of that name; or see :func:`get_checkpoint`.
    """
    from longtail_det2.engine.config_files import load_cfg, load_lazy

    path = get_config_file(name)
    cfg = load_lazy(path) if path.endswith(".py") else load_cfg(path)
    if trained:
        weights = get_checkpoint(name)
        use_weights(cfg, weights, len(read_weights(weights).class_ids))
    return cfg


def use_weights(cfg: Any, path: str, num_classes: int = 0) -> None:
    """Points a config at a weights file; in place.

    Args:
        cfg: YAML or lazy config.
        path: of the file; "" leaves the config's.
        num_classes: of the weights, set where the config leaves it to the data; 0 for unknown.
    """
    if isinstance(cfg, CfgNode):
        if path:
            cfg.MODEL.WEIGHTS = path
        heads = (cfg.MODEL.ROI_HEADS, "NUM_CLASSES")
    else:
        if path:
            cfg.train.init_checkpoint = path
        heads = (cfg.model.get("roi_heads") or cfg.model, "num_classes")
    node, key = heads
    if num_classes and node.get(key) == NUM_CLASSES_FROM_DATA:
        node[key] = num_classes


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model, in training mode, with random or with trained weights.

    Weights that the config starts from (an ImageNet backbone) are not fetched.

    Args:
        name: see :func:`get_config_file`; without `trained`, its number of classes must be set, not taken
            from data.
        trained: load the published weights; see :func:`get_checkpoint`.
        device: such as "cpu"; None takes the config's, or the CPU where there is no CUDA.

    Raises:
        ConfigError: see :func:`get_config`; or the config leaves the number of classes to the data.
    """
    from longtail_det2.checkpoint import ClassAwareCheckpointer
    from longtail_det2.engine.build import build_lazy_model, build_model
    from longtail_det2.engine.defaults import available_device

    cfg = get_config(name, trained)
    if name.endswith(".py"):
        cfg.train.device = available_device(device or cfg.train.device)
        model, weights = build_lazy_model(cfg), cfg.train.init_checkpoint
    else:
        cfg.MODEL.DEVICE = available_device(device or cfg.MODEL.DEVICE)
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    if trained:
        ClassAwareCheckpointer(model).load(weights)
    return model
