"""Configs of the project and their published weights, by name (see :mod:`..config_names`)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import check_hash, read_weights
from longtail_det2.config import NUM_CLASSES_FROM_DATA
from longtail_det2.config_files import load_cfg, load_lazy
from longtail_det2.config_names import get_config_file
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.engine.setup import available_device
from longtail_det2.utils.errors import ConfigError

ZOO_VARIABLE = "LONGTAIL_DET2_ZOO"


def zoo_key(name: str) -> str:
    """The folder of a config in a zoo: a YAML config and its lazy twin share their weights."""
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
    index = _fetch(zoo, f"{key}/metrics.json")
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weights"]
        file, sha256 = str(weights["file"]), str(weights["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        file = sha256 = ""
    if not re.fullmatch(r"[\w.-]+\.safetensors", file) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ConfigError(f"{index}: names no weights file and its SHA-256; publish the checkpoint again")
    path = _fetch(zoo, f"{key}/{file}")
    check_hash(path, sha256)
    return str(path)


def _fetch(zoo: str, file: str) -> Path:
    """A file of a zoo on this machine."""
    path = Path(zoo).expanduser() / file
    if path.is_file():
        return path
    if Path(zoo).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", zoo):
        raise ConfigError(
            f"${ZOO_VARIABLE} is {zoo!r}: there is no {file}, and it is no hub repository either"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ConfigError(f"fetching {file} of {zoo} needs a package: pip install huggingface-hub") from None
    try:
        return Path(hf_hub_download(zoo, file))
    except (OSError, ValueError, RuntimeError) as error:  # its errors derive from these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{file} of the hub repository {zoo} cannot be fetched: {reason}") from error


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
