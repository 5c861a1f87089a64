"""Metrics of detections, and the evaluators that training runs use."""
