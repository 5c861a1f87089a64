"""The last layers of heads by name: plain ones, and those of directions instead of lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from detectron2.layers import Conv2d
from torch import nn

from longtail_det2.layers import NormalizedConv2d, NormalizedLinear
from longtail_det2.utils.errors import ConfigError

MakeLayer = Callable[[int, int], nn.Module]
"""(number of features, number of outputs) -> the layer."""


def classifier_named(name: str = "Linear", temperature: float = 20.0) -> MakeLayer:
    """What makes the layer of a region's logits.

    Args:
        name: "Linear" or "NormalizedLinear".
        temperature: of the normalised layer.

    Raises:
        ConfigError: another name, or a temperature that is not positive.
    """
    makers: dict[str, MakeLayer] = {
        "Linear": nn.Linear,
        "NormalizedLinear": partial(NormalizedLinear, temperature=temperature),
    }
    return _chosen(makers, name, temperature, "MODEL.ROI_BOX_HEAD.CLASSIFIER")


def mask_predictor_named(name: str = "Conv2d", temperature: float = 20.0) -> MakeLayer:
    """What makes the last, 1 x 1 layer of a mask head.

    Args:
        name: "Conv2d" or "NormalizedConv2d".
        temperature: of the normalised layer.

    Raises:
        ConfigError: another name, or a temperature that is not positive.
    """
    makers: dict[str, MakeLayer] = {
        "Conv2d": partial(Conv2d, kernel_size=1),
        "NormalizedConv2d": partial(NormalizedConv2d, kernel_size=1, temperature=temperature),
    }
    return _chosen(makers, name, temperature, "MODEL.ROI_MASK_HEAD.PREDICTOR")


def _chosen(makers: dict[str, MakeLayer], name: str, temperature: float, key: str) -> MakeLayer:
    if name not in makers:
        raise ConfigError(f"{key} is {name!r}; it must be one of {', '.join(makers)}")
    if not temperature > 0:
        raise ConfigError(
            f"{key.rsplit('.', 1)[0]}.TEMPERATURE is {temperature}; it must be a positive number"
        )
    return makers[name]
