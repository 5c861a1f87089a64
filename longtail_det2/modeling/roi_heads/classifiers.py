"""Factories for the final layer: linear or cosine-normalized."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from longtail_det2.layers import NormalizedConv2d, NormalizedLinear
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

MakeLayer = Callable[[int, int], nn.Module]
"""(number of features, number of outputs) -> the layer."""


def build_classifier(name: str = "Linear", temperature: float = 20.0) -> MakeLayer:
    """Return the factory of the layer that makes the logits.

    Args:
        name: "Linear" or "NormalizedLinear".
        temperature: of the normalized layer.

    Raises:
        ConfigError: another name, or a temperature that is not positive.
    """
    makers: dict[str, MakeLayer] = {
        "Linear": nn.Linear,
        "NormalizedLinear": partial(NormalizedLinear, temperature=temperature),
    }
    return _choose(makers, name, temperature, "MODEL.ROI_BOX_HEAD.CLASSIFIER")


def build_mask_predictor(name: str = "Conv2d", temperature: float = 20.0) -> MakeLayer:
    """Return the factory of the last, 1 x 1 layer of a mask head.

    Args:
        name: "Conv2d" or "NormalizedConv2d".
        temperature: of the normalized layer.

    Raises:
        ConfigError: another name, or a temperature that is not positive.
    """
    makers: dict[str, MakeLayer] = {
        "Conv2d": partial(Conv2d, kernel_size=1),
        "NormalizedConv2d": partial(NormalizedConv2d, kernel_size=1, temperature=temperature),
    }
    return _choose(makers, name, temperature, "MODEL.ROI_MASK_HEAD.PREDICTOR")


def _choose(makers: dict[str, MakeLayer], name: str, temperature: float, key: str) -> MakeLayer:
    if name not in makers:
        raise ConfigError(f"{key} is {name!r}; it must be one of {', '.join(makers)}")
    if not temperature > 0:
        raise ConfigError(
            f"{key.rsplit('.', 1)[0]}.TEMPERATURE is {temperature}; it must be a positive number"
        )
    return makers[name]


def initialize_classifier(layer: nn.Module, bias: Tensor | None) -> None:
    """Set small weights in linear layers, and the loss's bias (None: zeros) where the layer has one.

    Args:
        layer: of any kind.
        bias: (L,) of :meth:`ClassificationLoss.bias`. A layer without bias starts without it, with a warning.
    """
    own = getattr(layer, "bias", None)
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        if own is not None:
            nn.init.zeros_(own)
    if bias is not None and isinstance(own, Tensor):
        with torch.no_grad():
            own.copy_(bias)
    elif bias is not None:
        logger.warning(
            "%s has no bias: the scores start near 0.5 instead of the loss's prior", type(layer).__name__
        )
