"""Models from configs, with everything of this project registered."""

from __future__ import annotations

import importlib
import logging

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model as build_detectron2_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from longtail_det2.config import NUM_CLASSES_FROM_DATA, num_classes_key
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_REGISTERING_MODULES = (
    "longtail_det2.modeling.backbone",
    "longtail_det2.modeling.losses",
    "longtail_det2.modeling.meta_arch",
    "longtail_det2.modeling.roi_heads",
)


def register_components() -> None:
    """Imports the modules that put heads, losses and backbones into the registries; again does nothing."""
    for name in _REGISTERING_MODULES:
        importlib.import_module(name)


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that a YAML config describes, on its device, with random weights.

    Raises:
        ConfigError: the number of classes is left to the data and was not set from them, or a part is named
            that does not exist.
    """
    register_components()
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == NUM_CLASSES_FROM_DATA:
        raise ConfigError(_unset_classes("MODEL.ROI_HEADS.NUM_CLASSES"))
    try:
        model: nn.Module = build_detectron2_model(cfg)
    except KeyError as error:  # a registry's message names the missing part
        raise ConfigError(f"the model cannot be built: {error.args[0]}") from error
    return _finish(model, cfg.MODEL.CHANNELS_LAST)


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """The model that a lazy config describes, on ``train.device``, with random weights.

    Raises:
        ConfigError: the number of classes is left to the data and was not set from them.
    """
    key = f"model.{num_classes_key(cfg.model)}"
    if OmegaConf.select(cfg, key) == NUM_CLASSES_FROM_DATA:
        raise ConfigError(_unset_classes(key))
    model: nn.Module = instantiate(cfg.model)
    model.to(cfg.train.device)
    return _finish(model, bool(cfg.train.get("channels_last", False)))


def _finish(model: nn.Module, channels_last: bool) -> nn.Module:
    if channels_last:
        # A convolution whose weight is channels-last makes its output so, whatever its input is.
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s with %.2f million trainable parameters", type(model).__name__, count / 1e6)
    logger.debug("Model:\n%s", model)
    return model


def _unset_classes(key: str) -> str:
    return (
        f"{key} is {NUM_CLASSES_FROM_DATA}: the number of classes is left to the data set. The train scripts "
        "set it from DATASETS.TRAIN; to build the model without data, set the key to the number of classes."
    )
