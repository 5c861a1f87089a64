"""Trained detectors as ONNX files that need neither config nor losses."""

from .exporting import export_detector
from .runtime import ExportedDetector
from .source import TrainedDetector, load_detector

__all__ = ["ExportedDetector", "TrainedDetector", "export_detector", "load_detector"]
