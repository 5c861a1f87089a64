"""The region proposal network whose parts can be replaced."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from model_factories import assert_same_detections, detect, training_step

from longtail_det2.modeling.proposal_generator import NormalizedRPN


@pytest.fixture
def rpn_cfg(tiny_cfg):
    tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "NormalizedRPN"
    tiny_cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 16
    return tiny_cfg


def rpn_losses(model, batch):
    losses, logged = training_step(model, batch)
    return {name: value for name, value in losses.items() if "rpn" in name}, logged


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_by_default_it_is_detectron2s(rpn_cfg, batch, loss_type):
    rpn_cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = loss_type
    rpn_cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT, rpn_cfg.MODEL.RPN.LOSS_WEIGHT = 0.5, 3.0
    ours = build_model(rpn_cfg)
    rpn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    theirs = build_model(rpn_cfg)
    theirs.load_state_dict(ours.state_dict())  # all keys
    assert type(theirs.proposal_generator) is RPN
    (mine, logged), (other, their_log) = rpn_losses(ours, batch), rpn_losses(theirs, batch)
    assert set(mine) == set(other) == {"loss_rpn_cls", "loss_rpn_loc"} and mine["loss_rpn_loc"] > 0
    torch.testing.assert_close(mine, other)
    gradients = (
        torch.autograd.grad(sum(losses.values()), list(model.backbone.parameters()))
        for losses, model in ((mine, ours), (other, theirs))
    )
    torch.testing.assert_close(*gradients)
    for name in ("rpn/num_pos_anchors", "rpn/num_neg_anchors"):
        assert logged[name] == their_log[name]
    assert_same_detections(detect(ours, batch), detect(theirs, batch))


def test_sampling_normalizer_and_losses_can_be_replaced(rpn_cfg, batch):
    seen = {}

    class AllAnchors(NormalizedRPN):
        def _subsample_labels(self, label):
            return label

        def objectness_losses(self, logits, labels):
            seen["labels"] = labels
            return super().objectness_losses(logits, labels)

        def box_losses(self, anchors, gt_boxes, deltas):
            seen["overlaps"] = anchors, gt_boxes
            return super().box_losses(anchors, gt_boxes, deltas)

    rpn_cfg.MODEL.RPN.LOSS_NORMALIZER = "foreground"
    model = build_model(rpn_cfg)
    model.proposal_generator.__class__ = AllAnchors
    losses, _ = rpn_losses(model, batch)
    positives = int((seen["labels"] == 1).sum())
    assert len(seen["labels"]) > 100 and 0 < positives == len(seen["overlaps"][0])
    again = build_model(rpn_cfg)
    again.load_state_dict(model.state_dict())
    again.proposal_generator.__class__ = AllAnchors
    again.proposal_generator.loss_normalizer.kind = "regions"
    sampled, _ = rpn_losses(again, batch)
    for name, value in losses.items():
        torch.testing.assert_close(value * positives, sampled[name] * 16 * 2)


def test_images_without_objects(rpn_cfg, batch):
    model = build_model(rpn_cfg)
    losses, _ = rpn_losses(model, [batch[1], batch[1]])
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"] > 0
    sum(losses.values()).backward()
    assert model.proposal_generator.rpn_head.anchor_deltas.weight.grad is not None
