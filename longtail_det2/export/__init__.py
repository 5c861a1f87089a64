"""Trained detectors as ONNX files that need neither config nor losses."""

from .exporting import Exported, export_detector
from .runtime import ExportedDetector
from .source import TrainedDetector, load_detector

__all__ = ["Exported", "ExportedDetector", "TrainedDetector", "export_detector", "load_detector"]
