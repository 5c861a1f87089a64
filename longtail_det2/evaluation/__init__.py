"""Official metrics.

`OpenImagesEvaluator` is imported on first use, so that the metric alone needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longtail_det2.evaluation.openimages_metric import (
    Detections,
    GroundTruth,
    OpenImagesResult,
    evaluate_detections,
    expand_detections,
    expand_ground_truth,
)

if TYPE_CHECKING:
    from longtail_det2.evaluation.openimages_evaluation import OpenImagesEvaluator

__all__ = [
    "Detections",
    "GroundTruth",
    "OpenImagesEvaluator",
    "OpenImagesResult",
    "evaluate_detections",
    "expand_detections",
    "expand_ground_truth",
]


def __getattr__(name: str) -> Any:
    if name == "OpenImagesEvaluator":
        from longtail_det2.evaluation.openimages_evaluation import OpenImagesEvaluator

        return OpenImagesEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
