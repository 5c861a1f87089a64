"""What a cascade does beyond what all detectors do (test_detectors.py)."""

import pytest
import torch
from model_factories import detect, training_step, use_detector

from longtail_det2.engine.build import build_model


@pytest.fixture
def cascade_cfg(tiny_cfg):
    return use_detector(tiny_cfg, "MultiLabelCascadeROIHeads")


def test_labels_of_objects_reach_the_losses_of_later_stages(cascade_cfg, batch, monkeypatch):
    cascade_cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    model = build_model(cascade_cfg)
    seen = []
    for predictor in model.roi_heads.box_predictor:
        monkeypatch.setattr(predictor.classification_loss, "update", seen.append)
    training_step(model, batch)
    assert len(seen) == 3
    for targets in seen:
        for label, truth in ((0, [1, 1, 0, 0, 0]), (2, [0, 0, 1, -1, 0]), (4, [0, 0, 0, 0, 1])):
            rows = targets.labels[targets.classes == label]
            assert len(rows) and (rows == torch.tensor(truth)).all()


def test_candidates_are_bounded_before_suppression(cascade_cfg, batch):
    torch.manual_seed(0)
    cascade_cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = 3
    assert 0 < len(detect(build_model(cascade_cfg), batch[:1])) <= 3
