"""A detector as a function from one image's pixels to plain tensors, ready to be recorded."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from longtail_det2.utils.errors import ConfigError

from .nms import NMS

OUTPUT_FIELDS = {
    "pred_boxes": "boxes",
    "pred_classes": "classes",
    "pred_masks": "masks",
    "scores": "scores",
}
"""Fields of a detector's `Instances` and the outputs of an exported model that they become."""

_PACKAGES = ("detectron2", "longtail_det2")


def detect(model: nn.Module, inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the detections of one image before they are scaled to another size.

    Args:
        model: in evaluation mode.
        inputs: one dict with the image (3, H, W) under "image".

    Returns:
        ``boxes`` (n, 4) XYXY in pixels of the image, ``classes`` (n,) int64, ``scores`` (n,), best first;
        ``masks`` (n, 1, M, M), probabilities within the box, if the detector predicts masks.

    Raises:
        ConfigError: the model does not return detections.
    """
    inference: Any = getattr(model, "inference", None)
    if inference is not None and "do_postprocess" in inspect.signature(inference).parameters:
        found = inference(inputs, do_postprocess=False)[0]
    else:  # the other meta-architectures scale to "height" and "width", by default those of the image
        found = model(inputs)[0]
        found = found.get("instances") if isinstance(found, dict) else found
    if not isinstance(found, Instances) or not found.has("pred_boxes"):
        raise ConfigError(f"{type(model).__name__} does not detect boxes and cannot be exported")
    fields = {name: found.get(field) for field, name in OUTPUT_FIELDS.items() if found.has(field)}
    return {name: value.tensor if isinstance(value, Boxes) else value for name, value in fields.items()}


def make_adapter(model: nn.Module, image: Tensor) -> Any:
    """Detectron2's ``TracingAdapter`` around :func:`detect`, in evaluation mode.

    Args:
        model: in evaluation mode, without gradients.
        image: (3, H, W) float32, pixels in 0..255 in the order of channels that the model wants.

    Raises:
        ConfigError: this Detectron2 cannot export.
    """
    try:
        from detectron2.export import TracingAdapter
    except ImportError as error:
        raise ConfigError(
            f"detectron2.export cannot be imported ({error}): Detectron2 v0.6 needs a torch with Caffe2 for "
            "it; scripts/install_detectron2.py builds one that does not, in a new environment"
        ) from error
    # The adapter is made in training mode, and tracing restores the mode of what it is given.
    return TracingAdapter(model, [{"image": image}], detect).eval()


@contextmanager
def recordable(nms: NMS) -> Iterator[None]:
    """While it lasts, the functions that a tracer would record for one number of boxes only are replaced.

    Args:
        nms: stands for ``batched_nms``.
    """
    from detectron2.layers import batched_nms

    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in _PACKAGES or module is None:
                continue
            if getattr(module, "batched_nms", None) is batched_nms:
                stack.enter_context(mock.patch.object(module, "batched_nms", nms))
            if hasattr(module, "_ScaleGradient"):  # a cascade's, which ONNX cannot hold
                stack.enter_context(mock.patch.object(module, "_ScaleGradient", _Unscaled))
            if ".modeling." in name:
                stack.enter_context(mock.patch.object(module, "min", _recorded_min, create=True))
                # Detectron2 replaces `len` in its own modules while an adapter runs, but not in ours.
                if name.startswith("longtail_det2.") and "len" not in vars(module):
                    stack.enter_context(mock.patch.object(module, "len", _recorded_len, create=True))
        yield


class _Unscaled:
    """Replace an autograd function that scales gradients: forward, it changes nothing."""

    @staticmethod
    def apply(values: Tensor, _scale: float) -> Tensor:
        return values


def _recorded_len(value: Any) -> Any:
    """``len`` that leaves a recorded length a tensor."""
    return value.__len__()


def _recorded_min(*values: Any, **options: Any) -> Any:
    """``min`` that records both sides where one is a tensor, as sizes are while a graph is recorded."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not torch.jit.is_tracing() or not tensors or len(values) != 2:
        return builtins.min(*values, **options)
    one, other = values
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.minimum(one, other)
    return torch.clamp(tensors[0], max=other if isinstance(one, Tensor) else one)
