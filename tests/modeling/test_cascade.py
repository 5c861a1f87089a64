"""What a cascade does beyond what all detectors do (test_detectors.py)."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from model_factories import detect, training_step, use_detector

from longtail_det2.engine.build import build_model
from longtail_det2.structures.multi_label import MultiLabelTargets


@pytest.fixture
def cascade_cfg(tiny_cfg):
    return use_detector(tiny_cfg, "MultiLabelCascadeROIHeads")


def test_later_stages_take_all_labels_of_the_object_they_match(cascade_cfg, batch):
    heads = build_model(cascade_cfg).roi_heads
    objects = [image["instances"] for image in batch]
    boxes = [[30.0, 20, 60, 60], [5, 5, 28, 30], [0, 0, 10, 10]], [[0.0, 0, 10, 10]]
    proposals = []
    for rows in boxes:
        proposals.append(Instances((64, 64)))
        proposals[-1].proposal_boxes = Boxes(torch.tensor(rows))
    before = objects[0].gt_classes.clone()
    with EventStorage():
        labelled = heads._match_and_label_boxes(proposals, 1, objects)
    assert labelled[0].gt_classes.tolist() == [2, 0, 4] and labelled[1].gt_classes.tolist() == [4]
    assert torch.equal(objects[0].gt_classes, before)
    targets = MultiLabelTargets.from_proposals(labelled, 4)
    assert targets.labels.tolist() == [[0, 0, 1, -1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


def test_labels_of_objects_reach_the_losses_of_later_stages(cascade_cfg, batch, monkeypatch):
    cascade_cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    model = build_model(cascade_cfg)
    seen = []
    for predictor in model.roi_heads.box_predictor:
        monkeypatch.setattr(predictor.classification_loss, "update", seen.append)
    training_step(model, batch)
    assert len(seen) == 3
    for targets in seen:
        first = targets.classes == 0
        assert first.any() and (targets.labels[first][:, :2] == 1).all()


def test_candidates_are_bounded_before_suppression(cascade_cfg, batch):
    torch.manual_seed(0)
    cascade_cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = 3
    assert 0 < len(detect(build_model(cascade_cfg), batch[:1])) <= 3
