"""Scores of concurrent softmax in exported models, whose rates are constants of the graph."""

from pathlib import Path

import pytest
import torch

from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector
from longtail_det2.export.graph import detect
from longtail_det2.export.source import to_input
from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LOSS = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "ConcurrentSoftmaxLoss")
NUM_CLASSES = 9


def hierarchy_like_rates():
    """Class 0 is above all others: it never suppresses them, and they suppress it a little less."""
    rates = torch.zeros(NUM_CLASSES, NUM_CLASSES)
    rates[1:, 0] = 1.0
    rates[0, 1:] = 0.1
    return rates


def test_exported_scores(detector_maker, picture, picture_file, tmp_path):
    """With logits so far apart that some scores need a sum of their own."""
    spread = 200.0
    test = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TEST"
    model, cfg = detector_maker("softmax", *LOSS, test, "softmax")  # there are no rates yet
    (loss,) = (module for module in model.modules() if isinstance(module, ConcurrentSoftmaxLoss))
    loss.test_form = "concurrent"
    loss.hold("rates", hierarchy_like_rates(), (NUM_CLASSES, NUM_CLASSES))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(spread)
        model.roi_heads.box_predictor.cls_score.bias[0] += spread - 1.0
    detector = TrainedDetector(model, cfg, "shapes", Path(__file__), min_size=96, max_size=160)
    done = export_detector(detector, tmp_path / "out", pictures=[picture_file])
    assert all(one.detections[0] >= 5 and one.largest < 1e-4 for one in done.differences.values())
    found = ExportedDetector(tmp_path / "out").detect(to_input(picture, 96, 160))
    loss.test_form = "softmax"
    with torch.no_grad():
        plain = detect(model, to_input(picture, 96, 160))
    assert abs(float(found["scores"].sum()) - float(plain["scores"].sum())) > 0.1  # rates do matter here
