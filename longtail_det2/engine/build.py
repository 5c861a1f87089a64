"""Models from configs, with everything of this project registered."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from operator import attrgetter

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model as build_detectron2_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

import longtail_det2.modeling  # noqa: F401  registers heads, losses, detectors and backbones
from longtail_det2.config import NUM_CLASSES_FROM_DATA, get_cfg, num_classes_key
from longtail_det2.data.store import AnnotationStore
from longtail_det2.modeling.losses import ClassificationLoss
from longtail_det2.modeling.meta_arch import MultiLabelClassifier
from longtail_det2.modeling.proposal_generator import NormalizedRPN
from longtail_det2.modeling.roi_heads import MultiLabelMaskHead
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_ROI_HEADS = "MODEL.ROI_HEADS.NAME to MultiLabelROIHeads or MultiLabelCascadeROIHeads"
_DENSE = "MODEL.META_ARCHITECTURE to MultiLabelRetinaNet or MultiLabelFCOS"
_RPN = "MODEL.PROPOSAL_GENERATOR.NAME to NormalizedRPN"
_CLASSIFIER = "MODEL.META_ARCHITECTURE to MultiLabelClassifier"
_MASK_HEAD = "MODEL.ROI_MASK_HEAD.NAME to MultiLabelMaskHead"
_BOX_KEYS = (
    "CLASSIFICATION_LOSS CLASSIFIER TEMPERATURE BRANCH LOSS_NORMALIZER GUIDED_SCALE ADAPTIVE_THRESHOLD"
)
_DENSE_KEYS = (
    "CLASSIFICATION_LOSS LOSS_NORMALIZER BBOX_REG_LOSS_WEIGHT PRIOR GUIDED_SCALE GUIDED_WARMUP "
    "ADAPTIVE_THRESHOLD"
)
_IMAGE_KEYS = (
    "CLASSIFICATION_LOSS IN_FEATURES FC_DIM DROPOUT CLASSIFIER TEMPERATURE LOSS_NORMALIZER PRIOR_PROB"
)
_MASK_KEYS = "PREDICTOR TEMPERATURE BATCH_SIZE_PER_IMAGE"
_READERS: list[tuple[str, str, str, type[nn.Module], str]] = [
    ("MODEL.ROI_BOX_HEAD", _BOX_KEYS, "roi_heads", ClassificationLoss, _ROI_HEADS),
    ("MODEL.DENSE_HEAD", _DENSE_KEYS, "head", ClassificationLoss, _DENSE),
    ("MODEL.RPN", "LOSS_NORMALIZER GUIDED_SCALE PRIOR_PROB", "proposal_generator", NormalizedRPN, _RPN),
    ("MODEL.IMAGE_HEAD", _IMAGE_KEYS, "classification_loss", ClassificationLoss, _CLASSIFIER),
    ("INPUT", "IMAGE_LEVEL", "", MultiLabelClassifier, _CLASSIFIER),
    ("MODEL.ROI_MASK_HEAD", _MASK_KEYS, "roi_heads.mask_head", MultiLabelMaskHead, _MASK_HEAD),
]
"""(Config node, its keys, part of the model, class in it that reads them, what to set to get that class)."""


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that a YAML config describes, on its device, with random weights.

    Raises:
        ConfigError: the number of classes is left to the data and was not set from them, a part is named that
            does not exist, or a key of this project is set that the model does not use.
    """
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == NUM_CLASSES_FROM_DATA:
        raise ConfigError(_unset_classes("MODEL.ROI_HEADS.NUM_CLASSES"))
    try:
        model: nn.Module = build_detectron2_model(cfg)
    except KeyError as error:  # a registry's message names the missing part
        message = str(error.args[0])
        keys = [key for key, value in _texts(cfg.MODEL, "MODEL") if f"'{value}'" in message]
        raise ConfigError(f"the model cannot be built: {message} See {' or '.join(keys)}") from error
    check_keys_used(cfg, model)
    _warn_of_lost_labels(cfg, model)
    return _finish(model, cfg.MODEL.CHANNELS_LAST)


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """Build the model that a lazy config describes, on ``train.device``, with random weights.

    Raises:
        ConfigError: the number of classes is left to the data and was not set from them.
    """
    key = f"model.{num_classes_key(cfg.model)}"
    if OmegaConf.select(cfg, key) == NUM_CLASSES_FROM_DATA:
        raise ConfigError(_unset_classes(key))
    model: nn.Module = instantiate(cfg.model)
    model.to(cfg.train.device)
    return _finish(model, bool(cfg.train.get("channels_last", False)))


def check_keys_used(cfg: CfgNode, model: nn.Module) -> None:
    """Compare a model with the keys of this project that it was built from.

    Detectron2's own heads do not read these keys: with them another loss than the config's would be trained.

    Raises:
        ConfigError: a key differs from its default, and the part of the model that it is for does not read
            it, or has another classification loss.
    """
    defaults = get_cfg()
    modules = dict(model.named_modules(remove_duplicate=False))
    for node, names, part, reader, remedy in _READERS:
        module = modules.get(part)
        if module is None and node == "MODEL.ROI_MASK_HEAD":  # MODEL.MASK_ON is False
            continue
        found = [one for one in module.modules() if isinstance(one, reader)] if module else []
        for name in names.split():
            read = attrgetter(f"{node}.{name}")
            value = read(cfg)
            if value == read(defaults):
                continue
            if name == "CLASSIFICATION_LOSS":
                found = [one for one in found if type(one).__name__ == value]
            if not found:
                built = f"its {part} is {type(module).__name__}" if module else f"it has no {part}"
                if module is None and node == "MODEL.ROI_BOX_HEAD":
                    remedy = "MODEL.DENSE_HEAD for a dense detector, MODEL.META_ARCHITECTURE for another one"
                raise ConfigError(
                    f"{node}.{name} is {value!r}, but the model that was built ({type(model).__name__}) does "
                    f"not use it: {built}. Set {remedy}, or leave the key at its default"
                )


def _texts(node: CfgNode, key: str) -> Iterator[tuple[str, str]]:
    """Iterate over the keys of a node whose values are texts."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _texts(value, f"{key}.{name}")
        elif isinstance(value, str):
            yield f"{key}.{name}", value


def _warn_of_lost_labels(cfg: CfgNode, model: nn.Module) -> None:
    """Warn where objects with several labels meet a model that learns one label per object."""
    if any(isinstance(module, ClassificationLoss) for module in model.modules()):
        return
    for name in cfg.DATASETS.TRAIN:
        path = MetadataCatalog.get(name).get("store_path") if name in DatasetCatalog.list() else None
        if path is None or not os.path.isdir(path):
            continue
        store = AnnotationStore(path)
        if store.has_hierarchy or len(store.labels) > store.num_objects:
            heads = type(getattr(model, "roi_heads", model)).__name__
            logger.warning(
                "objects of %s have several labels, of which %s learns the most specific one only; set %s",
                name,
                heads,
                _ROI_HEADS,
            )


def _finish(model: nn.Module, channels_last: bool) -> nn.Module:
    if channels_last:
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
