"""Data structures that travel with Detectron2's `Instances`."""

from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import IGNORED, NEGATIVE, POSITIVE, MultiLabelTargets

__all__ = ["IGNORED", "NEGATIVE", "POSITIVE", "DenseTargets", "MultiLabelTargets"]
