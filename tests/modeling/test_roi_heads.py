from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.utils.checkpoint import checkpoint

from longtail_det2.layers import NormalizedLinear
from longtail_det2.modeling.backbone import TinyBackbone
from longtail_det2.modeling.box_regression import multi_label_box_loss
from longtail_det2.modeling.losses import (
    NORMALIZERS,
    LossNormalizer,
    SeesawLoss,
    SigmoidBCELoss,
    SoftmaxCrossEntropyLoss,
)
from longtail_det2.modeling.roi_heads import MultiLabelFastRCNNOutputLayers
from longtail_det2.modeling.roi_heads.fast_rcnn import keep_top_candidates
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = 50 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 5 + 20 * torch.rand(count, 2, generator=generator)], dim=1)


def proposals_of(classes, labels=None):
    instances = Instances((64, 64))
    instances.proposal_boxes = Boxes(boxes(len(classes)))
    instances.gt_boxes = Boxes(boxes(len(classes), seed=1))
    instances.gt_classes = torch.tensor(classes)
    if labels is not None:
        instances.gt_labels = torch.tensor(labels, dtype=torch.int8)
    return instances


def predictor(loss, num_classes=3, **kwargs):
    return MultiLabelFastRCNNOutputLayers(
        ShapeSpec(channels=6),
        classification_loss=loss,
        num_classes=num_classes,
        box2box_transform=TRANSFORM,
        **kwargs,
    )


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_box_loss_of_single_labels_is_detectron2s(loss_type, agnostic):
    torch.manual_seed(0)
    reference = FastRCNNOutputLayers(
        ShapeSpec(channels=6),
        box2box_transform=TRANSFORM,
        num_classes=3,
        cls_agnostic_bbox_reg=agnostic,
        box_reg_loss_type=loss_type,
    )
    classes = torch.tensor([0, 3, 2, 1, 3])
    deltas = torch.randn(5, 4 if agnostic else 12)
    found = multi_label_box_loss(
        boxes(5),
        boxes(5, 1),
        deltas,
        MultiLabelTargets.from_classes(classes, 3),
        transform=TRANSFORM,
        loss_type=loss_type,
    )
    torch.testing.assert_close(found, reference.box_reg_loss(boxes(5), boxes(5, 1), deltas, classes))


def test_box_loss_trains_the_deltas_of_every_positive_label():
    deltas = torch.zeros(1, 12, requires_grad=True)
    several = MultiLabelTargets(torch.tensor([0]), torch.tensor([[1, 1, -1, 0]], dtype=torch.int8))
    single = MultiLabelTargets.from_classes(torch.tensor([0]), 3)
    loss, other = (
        multi_label_box_loss(boxes(1), boxes(1, 1), deltas, targets, transform=TRANSFORM)
        for targets in (several, single)
    )
    loss.backward()
    assert deltas.grad.view(3, 4).any(dim=1).tolist() == [True, True, False]
    torch.testing.assert_close(loss, other)  # a region weighs the same however many labels it has


def test_box_loss_without_foreground_is_attached_zero():
    for targets in (MultiLabelTargets.from_classes(torch.full((n,), 3), 3) for n in (0, 4)):
        deltas = torch.zeros(len(targets), 12, requires_grad=True)
        count = len(targets)
        loss = multi_label_box_loss(boxes(count), boxes(count), deltas, targets, transform=TRANSFORM)
        loss.backward()
        assert loss == 0 and deltas.grad is not None
    with pytest.raises(ValueError, match="'l2'"):
        multi_label_box_loss(boxes(4), boxes(4), deltas, targets, transform=TRANSFORM, loss_type="l2")


def test_keep_top_candidates():
    scores = torch.rand(6, 4)
    assert keep_top_candidates(scores, 0) is scores
    assert keep_top_candidates(scores, 18) is scores
    kept = keep_top_candidates(scores, 5)
    chosen = kept[:, :-1] >= 0
    assert chosen.sum() == 5
    assert torch.equal(
        kept[:, :-1][chosen].sort().values, scores[:, :-1].flatten().topk(5).values.sort().values
    )
    assert torch.equal(kept[:, -1], scores[:, -1])
    assert keep_top_candidates(torch.full((2, 4), 0.5), 2)[:, :-1].ge(0).sum() == 2  # ties
    # What is below its own class's threshold takes no place.
    row = torch.tensor([[0.5, 0.4, 0.1, 0.9]])
    kept = keep_top_candidates(row, 1, torch.tensor([0.6, 0.3, 0.0]))
    torch.testing.assert_close(kept, torch.tensor([[-1, 0.4, -1, 0.9]]))


def test_width_and_bias_come_from_the_loss():
    softmax = predictor(SoftmaxCrossEntropyLoss(num_classes=3))
    sigmoid = predictor(SigmoidBCELoss(num_classes=3, prior_prob=0.1))
    assert softmax.cls_score.out_features == 4 and not softmax.cls_score.bias.any()
    assert sigmoid.cls_score.out_features == 3
    torch.testing.assert_close(sigmoid.cls_score.bias.sigmoid(), torch.full((3,), 0.1))
    with pytest.raises(ConfigError, match="made for 3 classes, but its head has 4"):
        predictor(SigmoidBCELoss(num_classes=3), num_classes=4)


def test_without_proposals_there_is_no_loss_and_no_detection():
    head = predictor(SigmoidBCELoss(num_classes=3), test_pre_nms_topk=5)
    nothing = proposals_of([])
    nothing.gt_classes = nothing.gt_classes.long()
    for proposals in ([], [nothing]):
        losses = head.losses(head(torch.zeros(0, 6)), proposals)
        sum(losses.values()).backward()
        assert sum(losses.values()) == 0
    found, kept = head.inference(head(torch.zeros(0, 6)), [nothing])
    assert len(found[0]) == 0 and len(kept[0]) == 0


def test_one_weight_holds_for_every_key_of_the_classification_loss():
    torch.manual_seed(0)
    plain, weighted, named = (
        predictor(SeesawLoss(num_classes=3), loss_weight=weight)
        for weight in ({}, 2.0, {"loss_objectness": 5.0, "loss_cls": 3.0})
    )
    proposals, predictions = [proposals_of([0, 1, 3])], (torch.randn(3, 5), torch.randn(3, 12))
    one, two, own = (head.losses(predictions, proposals) for head in (plain, weighted, named))
    assert set(one) == {"loss_cls", "loss_objectness", "loss_box_reg"}
    for key, value in one.items():
        torch.testing.assert_close(2 * value, two[key])
    factors = {"loss_objectness": 5, "loss_cls": 3, "loss_box_reg": 1}
    assert {key: round((own[key] / one[key]).item(), 4) for key in one} == factors


def test_counters_change_once_per_training_step():
    """Under activation checkpointing the losses run twice in one."""
    head = predictor(SeesawLoss(num_classes=3), loss_normalizer=LossNormalizer("foreground_average"))

    def total(logits, deltas):
        return sum(head.losses((logits, deltas), [proposals_of([0, 3])]).values())

    logits, deltas = torch.zeros(2, 5, requires_grad=True), torch.zeros(2, 12, requires_grad=True)
    checkpoint(total, logits, deltas, use_reentrant=False).backward()
    assert logits.grad.any() and head.loss_normalizer.average.item() == pytest.approx(0.9 * 100 + 0.1)
    with torch.no_grad():
        total(logits, deltas)
    head.eval()
    total(logits, deltas)
    assert head.classification_loss.class_counts.tolist() == [1, 0, 0, 1]


def test_a_classifier_without_bias_is_warned_of_where_the_bias_matters(caplog):
    cosine = partial(NormalizedLinear, bias=False)
    head = predictor(SoftmaxCrossEntropyLoss(num_classes=3), classifier=cosine)
    assert head.cls_score.bias is None and not caplog.records
    predictor(SigmoidBCELoss(num_classes=3), classifier=cosine)
    assert "NormalizedLinear has no bias" in caplog.text


def test_a_classifier_of_several_layers():
    def classifier(features, logits):
        return torch.nn.Sequential(torch.nn.Linear(features, 2), torch.nn.Linear(2, logits))

    head = predictor(SoftmaxCrossEntropyLoss(num_classes=3), classifier=classifier)
    assert isinstance(head.cls_score[1], torch.nn.Linear) and head(torch.randn(4, 6))[0].shape == (4, 4)


def test_losses_are_divided_by_what_the_normalizer_says():
    torch.manual_seed(0)
    proposals, predictions = [proposals_of([0, 3, 3, 3, 2])], (torch.randn(5, 3), torch.randn(5, 12))
    found = {
        kind: predictor(SigmoidBCELoss(num_classes=3), loss_normalizer=kind).losses(predictions, proposals)
        for kind in NORMALIZERS
    }
    classes = {kind: losses["loss_cls"] for kind, losses in found.items()}
    torch.testing.assert_close(classes["elements"], classes["regions"] / 3)
    torch.testing.assert_close(classes["foreground"], 5 / 2 * classes["regions"])
    found = {kind: losses["loss_box_reg"] for kind, losses in found.items()}
    torch.testing.assert_close(found["elements"], found["regions"])
    torch.testing.assert_close(found["foreground"], 5 / 2 * found["regions"])
    torch.testing.assert_close(found["foreground_average"], 5 / 90.2 * found["regions"])
    with pytest.raises(ConfigError, match="LOSS_NORMALIZER is 'rows'"):
        predictor(SigmoidBCELoss(num_classes=3), loss_normalizer="rows")


def test_accuracy_is_logged_for_any_of_the_labels():
    head = predictor(SigmoidBCELoss(num_classes=3))
    logits = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    proposals = proposals_of([0, 1, 3], [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    with EventStorage(19) as storage:
        head.losses((logits, torch.zeros(3, 12)), [proposals])
        assert storage.latest()["fast_rcnn/fg_cls_accuracy"][0] == 0.5


def test_tiny_backbone_shapes():
    backbone = TinyBackbone()
    assert backbone(torch.zeros(2, 3, 64, 96))["p3"].shape == (2, 64, 8, 12)
    assert backbone.output_shape()["p3"].stride == 8
    with pytest.raises(ValueError, match="three stages"):
        TinyBackbone(stage_channels=(8, 8))
