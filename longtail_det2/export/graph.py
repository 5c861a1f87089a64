"""A detector or classifier as a function from one image's pixels to plain tensors, recorded as ONNX."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.export import Dim

from longtail_det2.modeling.meta_arch import MultiLabelClassifier
from longtail_det2.utils.errors import ConfigError

from .nms import translations
from .one_image import recordable

OPSET = 18
"""ONNX operator set: that of PyTorch's exporter."""

MODEL_FILE = "model.onnx"

OUTPUT_FIELDS = {
    "pred_boxes": "boxes",
    "pred_classes": "classes",
    "pred_masks": "masks",
    "scores": "scores",
}
"""Fields of a detector's `Instances` and the outputs of an exported model that they become."""

_RECORDED_SIZE = (448, 640)
"""So large that no feature map has one row or column: code could take that for a size that never varies."""


def detect(model: Any, image: Tensor) -> dict[str, Tensor]:
    """Return the detections of one image before they are scaled to another size.

    Args:
        model: a detector or a classifier of images in evaluation mode.
        image: (3, H, W).

    Returns:
        ``boxes`` (n, 4) XYXY in pixels of the image, ``classes`` (n,) int64, ``scores`` (n,), best first;
        ``masks`` (n, 1, M, M), probabilities within the box, if the detector predicts masks. Of a classifier
        only ``scores`` (K,), in the order of the classes.

    Raises:
        ConfigError: the model returns neither.
    """
    inputs = [{"image": image}]
    if isinstance(model, MultiLabelClassifier):
        return model(inputs)[0]
    if isinstance(model, GeneralizedRCNN):
        found = model.inference(inputs, do_postprocess=False)[0]
    elif isinstance(model, DenseDetector):
        dense: Any = model
        images = dense.preprocess_image(inputs)
        levels = dense.backbone(images.tensor)
        features = [levels[name] for name in dense.head_in_features]
        found = dense.forward_inference(images, features, dense.head(features))[0]
    else:
        raise ConfigError(
            f"{type(model).__name__} gives neither boxes nor scores of images and cannot be exported"
        )
    fields = {name: found.get(field) for field, name in OUTPUT_FIELDS.items() if found.has(field)}
    return {name: value.tensor if isinstance(value, Boxes) else value for name, value in fields.items()}


class _Detect(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(sorted(detect(self.model, image).items()))


def record_onnx(model: nn.Module, path: str | Path, fixed_size: Sequence[int] = ()) -> list[str]:
    """Record a model as ONNX and save it; height, width (unless fixed) and detections are dynamic.

    Args:
        model: stays as it is.
        path: of the file.
        fixed_size: (height, width) of all images; () for any.

    Returns:
        Names of the outputs in their order.

    Raises:
        ConfigError: the model does not return detections, or a package is not installed.
    """
    try:
        import onnx

        table = translations()
    except ImportError:
        raise ConfigError("writing ONNX needs packages: pip install onnx onnxruntime onnxscript") from None
    detector = _Detect(copy.deepcopy(model).eval().requires_grad_(False))
    image = torch.zeros(3, *(fixed_size or _RECORDED_SIZE))
    sizes = {} if fixed_size else {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    with recordable(), torch.no_grad(), warnings.catch_warnings():
        # Detectors may set attributes of their own; this one is a copy.
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects")
        # Strict: read from the bytecode, where len() may be symbolic. Python makes a number of it.
        program = torch.export.export(detector, (image,), dynamic_shapes=(sizes,), strict=True)
    outputs = program.graph_signature.user_outputs
    names = list(program.call_spec.out_spec.unflatten(outputs))  # pyright: ignore[reportOptionalMemberAccess]
    torch.onnx.export(
        program,
        (),
        os.fspath(path),
        input_names=["image"],
        output_names=names,
        opset_version=OPSET,
        custom_translation_table=table,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    onnx.checker.check_model(os.fspath(path))
    return names
