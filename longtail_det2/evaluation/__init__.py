"""Metrics of detections, and the evaluators that training runs use.

`build_evaluators` and `StoreEvaluator` are imported on first use: the Open Images metric needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longtail_det2.evaluation.openimages_metric import (
    Detections,
    GroundTruth,
    OpenImagesResult,
    evaluate_detections,
    expand_ground_truth,
)

if TYPE_CHECKING:
    from longtail_det2.evaluation.evaluator import StoreEvaluator, build_evaluators

__all__ = [
    "Detections",
    "GroundTruth",
    "OpenImagesResult",
    "StoreEvaluator",
    "build_evaluators",
    "evaluate_detections",
    "expand_ground_truth",
]


def __getattr__(name: str) -> Any:
    if name in ("StoreEvaluator", "build_evaluators"):
        from longtail_det2.evaluation import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
