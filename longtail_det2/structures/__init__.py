"""Data structures that travel with Detectron2's `Instances`."""

from .multi_label import IGNORED, NEGATIVE, POSITIVE, DenseTargets, MultiLabelTargets

__all__ = ["IGNORED", "NEGATIVE", "POSITIVE", "DenseTargets", "MultiLabelTargets"]
