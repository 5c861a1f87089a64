"""Facts that users of an exported model need, as ``metadata.json`` beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from longtail_det2 import __version__
from longtail_det2.checkpoint.weights import sha256_of
from longtail_det2.modeling.losses import ClassificationLoss
from longtail_det2.utils.errors import ConfigError

from .graph import MODEL_FILE, OPSET
from .source import TrainedDetector

METADATA_FILE = "metadata.json"
FORMAT, VERSION = "longtail_det2.export", 1

_OUTPUTS = {
    "boxes": "(n, 4) float32: x0, y0, x1, y1 in pixels of the input picture",
    "classes": "(n,) int64: class index; a box with several labels comes once for each",
    "masks": "(n, 1, M, M) float32: probability of the object within its box",
    "scores": "(n,) float32 in [0, 1], best first",
}
_THRESHOLDS = {
    "score": ("test_score_thresh",),
    "nms": ("test_nms_thresh",),
    "detections_per_image": ("test_topk_per_image", "max_detections_per_image"),
    "candidates": ("test_pre_nms_topk", "test_topk_candidates"),
}
"""Names of settings and of the attributes that hold them, in predictors and in dense detectors."""


def describe(detector: TrainedDetector, outputs: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of an exported model.

    Args:
        detector: what was exported.
        outputs: names in their order.
    """
    model = detector.model
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"file": MODEL_FILE, "kind": "onnx", "opset": OPSET},
        "input": {
            "name": "image",
            "shape": [3, "height", "width"],
            "dtype": "float32",
            "range": [0, 255],
            "channels": detector.image_format,
            "resize": {"shorter_side": detector.min_size, "longer_side_at_most": detector.max_size},
            "normalised_inside": {
                "mean": _numbers(getattr(model, "pixel_mean", None)),
                "std": _numbers(getattr(model, "pixel_std", None)),
            },
        },
        "outputs": [{"name": name, "content": _OUTPUTS[name]} for name in outputs],
        "classes": {
            "count": _num_classes(model) or len(detector.class_ids) or None,
            "ids": list(detector.class_ids) or None,
            "names": list(detector.class_names) or None,
        },
        "scores_by": _loss_names(model),
        "thresholds": _thresholds(model),
        "trained": {
            "config": detector.config_name,
            "weights": detector.weights.name,
            "sha256": sha256_of(detector.weights),
        },
        "versions": {"longtail_det2": __version__, **_versions("torch", "torchvision", "onnx")},
    }


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of an exported model.

    Raises:
        ConfigError: the folder holds none.
    """
    path = Path(folder) / METADATA_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is no exported model: {path.name} cannot be read ({error}). longtail-det2 export "
            "makes such folders"
        ) from error
    kind = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if kind != (FORMAT, VERSION):
        raise ConfigError(f"{path} is no metadata of format {FORMAT!r}, version {VERSION}")
    return content


def _numbers(values: Tensor | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values.flatten()]


def _thresholds(model: nn.Module) -> dict[str, float | int | list[float] | None]:
    """Return the settings of the last stage that has them (a cascade's stages share theirs).

    The score threshold is a number, or a list in the order of the classes where they differ.
    """
    found: dict[str, float | int | list[float] | None] = dict.fromkeys(_THRESHOLDS)
    for module in model.modules():
        for key, attributes in _THRESHOLDS.items():
            for name in attributes:
                value = getattr(module, name, None)
                if isinstance(value, (int, float)):
                    found[key] = value
                elif isinstance(value, Tensor):
                    rounded = [float(f"{one:.7g}") for one in value.tolist()]  # as float32 knows it
                    found[key] = rounded[0] if len(set(rounded)) == 1 else rounded
    return found


def _loss_names(model: nn.Module) -> list[str]:
    """Return the losses that make the scores, such as SigmoidBCELoss for independent classes."""
    return sorted(
        {type(module).__name__ for module in model.modules() if isinstance(module, ClassificationLoss)}
    )


def _num_classes(model: nn.Module) -> int | None:
    for part in (getattr(model, "roi_heads", None), model):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found
