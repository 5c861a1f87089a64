"""Configs of the project and their published weights, by name (see :mod:`..config_names`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import read_weights
from longtail_det2.config import NUM_CLASSES_FROM_DATA
from longtail_det2.config_files import load_cfg, load_lazy
from longtail_det2.config_names import get_config_file
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.engine.setup import available_device
from longtail_det2.modeling.anchor_priors import forget_measured_prior
from longtail_det2.utils.errors import ConfigError

ZOO_VARIABLE = "LONGTAIL_DET2_ZOO"


def zoo_key(name: str) -> str:
    """Return the folder of a config in a zoo: a YAML config and its lazy twin share their weights."""
    return re.sub(r"\.(yaml|yml|py)$", "", name)


def get_checkpoint(name: str) -> str:
    """Return the path of a config's published weights on this machine, their hash verified.

    ``$LONGTAIL_DET2_ZOO`` names the zoo: a folder, or a repository "owner/name" on the Hugging Face hub, with
    a folder from ``longtail-det2 publish`` per config. The path serves as ``MODEL.WEIGHTS``.

    Args:
        name: see :func:`get_config_file`; the lazy twin of a config has the same weights.

    Raises:
        ConfigError: none are published, they cannot be fetched, or the file is damaged.
    """
    zoo, key = os.environ.get(ZOO_VARIABLE, ""), zoo_key(name)
    if not zoo:
        raise ConfigError(
            f"{name}: there are no published weights; ${ZOO_VARIABLE} names a zoo that has some"
        )
    folder = Path(zoo).expanduser()
    found = list(((folder if folder.is_dir() else _fetch(zoo, key)) / key).glob("*.safetensors"))
    if len(found) != 1:
        raise ConfigError(
            f"${ZOO_VARIABLE} is {zoo!r}: {key} has {len(found)} weights files there, expected one"
        )
    read_weights(found[0])  # which compares the file with the hash in its name
    return str(found[0])


def _fetch(zoo: str, key: str) -> Path:
    """The copy of a hub repository on this machine, with the weights of one config."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", zoo):
        raise ConfigError(f"${ZOO_VARIABLE} is {zoo!r}: neither a folder nor a hub repository owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(f"fetching {key} of {zoo} needs a package: pip install huggingface-hub") from None
    try:
        return Path(snapshot_download(zoo, allow_patterns=f"{key}/*.safetensors"))
    except (OSError, ValueError, RuntimeError) as error:  # its errors derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{key} of the hub repository {zoo} cannot be fetched: {reason}") from error


def get_config(name: str, trained: bool = False) -> Any:
    """Return a config, ready to be changed.

    Args:
        name: see :func:`get_config_file`.
        trained: also point it at trained weights, and where it leaves the number of classes to the data, set
            it to theirs.

    Returns:
        A Detectron2 ``CfgNode`` for a YAML config, an omegaconf ``DictConfig`` for a lazy one.

    Raises:
        ConfigError: there is none of that name; or see :func:`get_checkpoint`.
    """
    path = get_config_file(name)
    cfg: Any = load_lazy(path) if path.endswith(".py") else load_cfg(path)
    if trained:
        use_weights(cfg, get_checkpoint(name))
    return cfg


def use_weights(cfg: Any, path: str) -> tuple[str, ...]:
    """Point a YAML or lazy config at a weights file, and take its number of classes if the config has none.

    Returns:
        The identifiers of the file's classes; () if it does not say.

    Raises:
        ConfigError: the file does not exist or is damaged.
    """
    if isinstance(cfg, CfgNode):
        cfg.MODEL.WEIGHTS = path
        forget_measured_prior(cfg)
        node, key = cfg.MODEL.ROI_HEADS, "NUM_CLASSES"
    else:
        cfg.train.init_checkpoint = path
        node, key = cfg.model.get("roi_heads") or cfg.model, "num_classes"
    class_ids = read_weights(path).class_ids
    if class_ids and node.get(key) == NUM_CLASSES_FROM_DATA:
        node[key] = len(class_ids)
    return class_ids


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Return a model in training mode, with random or with trained weights.

    Weights that the config starts from (an ImageNet backbone) are not fetched.

    Args:
        name: see :func:`get_config_file`; without `trained`, its number of classes must be set, not taken
            from data.
        trained: load the published weights; see :func:`get_checkpoint`.
        device: such as "cpu"; None takes the config's, or the CPU where there is no CUDA.

    Raises:
        ConfigError: see :func:`get_config`; or the config leaves the number of classes to the data.
    """
    return build(get_config(name, trained), device, load=trained)


def build(cfg: Any, device: str | None = None, *, load: bool) -> nn.Module:
    """Build the model of a YAML or lazy config; with `load`, with the trained weights that it names."""
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = available_device(device or cfg.MODEL.DEVICE)
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        cfg.train.device = available_device(device or cfg.train.device)
        model, weights = build_lazy_model(cfg), cfg.train.init_checkpoint
    if load:
        ClassAwareCheckpointer(model, complete=True).load(weights)
    return model
