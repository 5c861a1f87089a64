"""Record a detector as ONNX."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from longtail_det2.utils.errors import ConfigError

from .adapter import detect, make_adapter, recordable
from .nms import onnx_nms

OPSET = 16
"""ONNX operator set: the first with RoIAlign's half-pixel shift."""

MODEL_FILE = "model.onnx"


def record_onnx(model: nn.Module, image: Tensor, path: str | Path) -> list[str]:
    """Trace a detector, turn the graph into ONNX and save it; height, width and detections are dynamic.

    Args:
        model: stays as it is.
        image: (3, H, W) float32 image to record with; its size does not matter later.
        path: of the file.

    Returns:
        Names of the outputs in their order.

    Raises:
        ConfigError: the model does not return detections, or the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ConfigError("writing ONNX needs two packages: pip install onnx onnxruntime") from None
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        names = sorted(detect(model, [{"image": image}]))  # the adapter sorts them too
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}}
    with _quiet(), recordable(onnx_nms), torch.no_grad():
        torch.onnx.export(
            make_adapter(model, image),
            (image,),
            os.fspath(path),
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    onnx.checker.check_model(os.fspath(path))
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings about branches; :func:`recordable` replaces those that matter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
