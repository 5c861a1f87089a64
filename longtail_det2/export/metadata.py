"""Facts that users of an exported model need, as ``metadata.json`` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail_det2 import __version__
from longtail_det2.checkpoint.weights import sha256_of
from longtail_det2.modeling.losses import ClassificationLoss
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import read_json

from .graph import MODEL_FILE, OPSET
from .source import TrainedDetector

METADATA_FILE = "metadata.json"
FORMAT, VERSION = "longtail_det2.export", 1

_OUTPUTS = {
    "boxes": "(n, 4) float32: x0, y0, x1, y1 in pixels of the input image",
    "classes": "(n,) int64: class index; a box with several labels comes once for each",
    "masks": "(n, 1, M, M) float32: probability of the object within its box",
    "scores": "(n,) float32 in [0, 1], best first",
}
_OUTPUTS_OF_IMAGES = {"scores": "(K,) float32 in [0, 1]: of each class in the whole image"}
_THRESHOLDS = {
    "test_score_thresh": "score",
    "test_nms_thresh": "nms",
    "test_topk_per_image": "detections_per_image",
    "max_detections_per_image": "detections_per_image",
    "test_pre_nms_topk": "candidates",
    "test_topk_candidates": "candidates",
}
"""Attributes of predictors and of dense detectors, and the settings that they hold."""


def describe(detector: TrainedDetector, outputs: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of an exported model.

    Args:
        detector: what was exported.
        outputs: names in their order.
    """
    model: Any = detector.model
    resize: dict[str, Any] = {"shorter_side": detector.min_size, "longer_side_at_most": detector.max_size}
    if detector.fixed_size:
        resize = dict(zip(("height", "width"), detector.fixed_size, strict=True))
    contents = _OUTPUTS if "boxes" in outputs else _OUTPUTS_OF_IMAGES
    losses = {type(part).__name__ for part in model.modules() if isinstance(part, ClassificationLoss)}
    thresholds = {  # of the last part that has them; a cascade's stages share theirs
        setting: _number(getattr(part, name))
        for part in model.modules()
        for name, setting in _THRESHOLDS.items()
        if hasattr(part, name)
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"file": MODEL_FILE, "kind": "onnx", "opset": OPSET},
        "input": {
            "name": "image",
            "shape": [3, *(detector.fixed_size or ("height", "width"))],
            "dtype": "float32",
            "range": [0, 255],
            "channels": detector.image_format,
            "resize": resize,
            "normalised_inside": {
                "mean": model.pixel_mean.flatten().tolist(),
                "std": model.pixel_std.flatten().tolist(),
            },
        },
        "outputs": [{"name": name, "content": contents[name]} for name in outputs],
        "classes": {
            "count": getattr(model, "roi_heads", model).num_classes,
            "ids": list(detector.class_ids) or None,
            "names": list(detector.class_names) or None,
        },
        "scores_by": sorted(losses),
        "thresholds": thresholds,
        "trained": {
            "config": detector.config_name,
            "weights": detector.weights.name,
            "sha256": sha256_of(detector.weights),
        },
        "versions": {"longtail_det2": __version__, "torch": torch.__version__, "onnx": version("onnx")},
    }


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of an exported model.

    Raises:
        ConfigError: the folder holds none.
    """
    path = Path(folder) / METADATA_FILE
    try:
        content = read_json(path)
    except DataError as error:
        raise ConfigError(f"{folder} is no folder of longtail-det2 export ({error})") from None
    kind = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if kind != (FORMAT, VERSION):
        raise ConfigError(f"{path} is no metadata of format {FORMAT!r}, version {VERSION}")
    return content


def _number(value: float | Tensor) -> float | int | list[float]:
    """Return a threshold as a number, or where classes differ as a list in the order of the classes."""
    if not isinstance(value, Tensor):
        return value
    numbers = [float(f"{one:.7g}") for one in value.tolist()]  # as float32 knows it
    return numbers[0] if len(set(numbers)) == 1 else numbers
