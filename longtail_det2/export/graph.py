"""Recording a detector as TorchScript or ONNX, and a check that nothing of the losses went along."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail_det2.modeling.losses import ClassificationLoss
from longtail_det2.utils.errors import ConfigError

from .adapter import detect, inference_copy, make_adapter, recordable
from .nms import onnx_nms, scripted_nms

OPSET = 16
"""ONNX operator set: the first with RoIAlign's half-pixel shift."""

MODEL_FILES = {"torchscript": "model.ts", "onnx": "model.onnx"}
"""Formats and the file names of models in them."""

_LOSS_OPERATORS = re.compile(
    r"cross_entropy|nll_loss|smooth_l1|l1_loss|mse_loss|huber|NegativeLogLikelihood|SoftmaxCrossEntropyLoss"
)


def record_torchscript(model: nn.Module, image: Tensor, path: str | Path) -> list[str]:
    """Trace a detector and save it; the file runs on the kind of device that the model is on.

    Args:
        model: stays as it is.
        image: (3, H, W) float32 image to record with; its size does not matter later.
        path: of the file.

    Returns:
        Names of the outputs in their order.

    Raises:
        ConfigError: the model cannot be recorded, or a loss is in the graph.
    """
    model = inference_copy(model)
    names = output_names(model, image)
    with _quiet(), recordable(scripted_nms()), torch.no_grad():
        traced: Any = torch.jit.trace(make_adapter(model, image), (image,), check_trace=False)
    _refuse_losses(torchscript_contents(traced), model)
    traced.save(str(path))
    return names


def record_onnx(model: nn.Module, image: Tensor, path: str | Path) -> list[str]:
    """Trace a detector, turn the graph into ONNX and save it; height, width and detections are dynamic.

    See :func:`record_torchscript`.
    """
    onnx = require_onnx()
    model = inference_copy(model)
    names = output_names(model, image)
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
    written = onnx.load(os.fspath(path))
    onnx.checker.check_model(written)
    _refuse_losses(onnx_contents(written), model)
    return names


RECORDERS = {"torchscript": record_torchscript, "onnx": record_onnx}
"""Format -> function (model, image, path) -> output names."""


def output_names(model: nn.Module, image: Tensor) -> list[str]:
    """Return the outputs that a recorded model will have, in their order.

    Raises:
        ConfigError: the model does not return detections.
    """
    with torch.no_grad():
        return sorted(detect(model, [{"image": image}]))  # the adapter sorts them too


def torchscript_contents(traced: Any) -> list[str]:
    """Return the names of the operators, submodule classes and tensors that a traced module is made of."""
    operators = {node.kind() for node in _all_nodes(traced.inlined_graph)}
    classes = {module.original_name for module in traced.modules()}
    return sorted(operators | classes | set(traced.state_dict()))


def onnx_contents(model: Any) -> list[str]:
    """Return the names of the operators, nodes (which contain the modules' names) and tensors."""
    nodes, graphs = [], [model.graph]
    while graphs:
        graph = graphs.pop()
        nodes += graph.node
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    operators = {f"{node.domain}::{node.op_type}" for node in nodes}
    return sorted(operators | {node.name for node in nodes} | {t.name for t in model.graph.initializer})


def require_onnx() -> Any:
    """Import the package onnx.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            'writing ONNX needs the packages onnx and onnxruntime: pip install "longtail-det2[export]"'
        ) from error
    return onnx


def _refuse_losses(contents: Sequence[str], model: nn.Module) -> None:
    """Raise ConfigError if a loss, its state or an operator of one is part of a recorded model."""
    losses = [cls.__name__ for cls in _subclasses(ClassificationLoss)]
    wanted = re.compile("|".join([*map(re.escape, losses), _LOSS_OPERATORS.pattern]))
    state = set(model.state_dict())
    unknown = [
        name
        for name in contents
        if name.startswith("model.") and name.removeprefix("model.") not in state | _buffers(model)
    ]
    found = [name for name in contents if wanted.search(name)] + unknown
    if found:
        raise ConfigError(f"the recorded graph has parts of training: {', '.join(found[:5])}")


def _buffers(model: nn.Module) -> set[str]:
    """Return the names of all buffers, also of those that checkpoints leave out."""
    return {name for name, _ in model.named_buffers()}


def _subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _all_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


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
