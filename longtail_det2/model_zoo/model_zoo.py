"""Access to the configs that come with the project, by their name below ``configs/``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail_det2.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_PACKAGED = Path(__file__).resolve().parent / "configs"
_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"


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
    root = config_root()
    names = (path.relative_to(root) for path in root.rglob("*") if path.suffix in (".yaml", ".py"))
    return sorted(
        name.as_posix() for name in names if "common" not in name.parts and not name.name.startswith("Base-")
    )


def get_config_file(name: str) -> str:
    """Path of a config.

    Args:
        name: below ``configs/``, such as "shapes/faster_rcnn_tiny_softmax_shapes.yaml".

    Raises:
        ConfigError: there is none of that name.
    """
    path = config_root() / name
    if not path.is_file() or config_root() not in path.resolve().parents:
        known = list_configs()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r} is not in the model zoo.{hint} It has:\n  " + "\n  ".join(known))
    return str(path)


def get_config(name: str, trained: bool = False) -> Any:
    """A config, ready to be changed.

    Args:
        name: see :func:`get_config_file`.
        trained: also point it at trained weights.

    Returns:
        A Detectron2 ``CfgNode`` for a YAML config, an omegaconf ``DictConfig`` for a lazy one.

    Raises:
        ConfigError: there is none of that name, or weights are asked for, which do not exist yet.
    """
    from longtail_det2.engine.config_files import load_cfg, load_lazy

    path = get_config_file(name)
    if trained:
        raise ConfigError(
            f"there are no published weights for {name!r} yet; use trained=False, train it with "
            "scripts/train_net.py, and load your checkpoint with MODEL.WEIGHTS"
        )
    return load_lazy(path) if path.endswith(".py") else load_cfg(path)


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model with random weights, in training mode.

    Weights that the config starts from (an ImageNet backbone) are not fetched.

    Args:
        name: see :func:`get_config_file`; its number of classes must be set, not taken from data.
        trained: see :func:`get_config`.
        device: such as "cpu"; None takes the config's, or the CPU where there is no CUDA.

    Raises:
        ConfigError: see :func:`get_config`; or the config leaves the number of classes to the data.
    """
    from longtail_det2.engine.build import build_lazy_model, build_model
    from longtail_det2.engine.defaults import available_device

    cfg = get_config(name, trained)
    if name.endswith(".py"):
        cfg.train.device = available_device(device or cfg.train.device)
        return build_lazy_model(cfg)
    cfg.MODEL.DEVICE = available_device(device or cfg.MODEL.DEVICE)
    return build_model(cfg)
