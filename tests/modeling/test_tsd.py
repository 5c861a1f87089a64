"""TSD's box branch and its constraint, with every loss, in standard heads and in a cascade."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from model_factories import (
    DETECTORS,
    assert_same_detections,
    assert_trains,
    detect,
    make_loss,
    random_logits,
    training_step,
    use_detector,
)
from torch import nn

from longtail_det2.checkpoint.checkpointer import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import read_weights
from longtail_det2.engine.build import build_model
from longtail_det2.layers import classification_constraint, matched_iou, progressive_constraint
from longtail_det2.modeling.box_regression import multi_label_box_loss
from longtail_det2.modeling.roi_heads import MultiLabelFastRCNNOutputLayers, TSDBoxBranch, TSDPredictions
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

LOSSES = ["SoftmaxCrossEntropyLoss", "SigmoidBCELoss", "ConcurrentSoftmaxLoss", "SeesawLoss"]
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


@pytest.fixture(params=DETECTORS[:2])
def cfg(request, tiny_cfg):
    use_detector(tiny_cfg, request.param).MODEL.ROI_BOX_HEAD.BRANCH = "TSDBoxBranch"
    return tiny_cfg


def make_branch(num_classes=4, loss="SoftmaxCrossEntropyLoss", **options):
    """A branch of 2 x 2 bins whose predictors see one number per region."""

    def predictor(name):
        return MultiLabelFastRCNNOutputLayers(
            ShapeSpec(channels=1),
            classification_loss=make_loss(name, num_classes),
            num_classes=num_classes,
            box2box_transform=TRANSFORM,
        )

    branch = TSDBoxBranch(
        input_shape=ShapeSpec(channels=3, height=2, width=2),
        regression_head=nn.Identity(),
        sibling_head=nn.Identity(),
        sibling_predictor=predictor(loss),
        **options,
    )
    return branch.attach(nn.Identity(), nn.Identity(), predictor(loss))


@pytest.fixture(params=["m02_m02", "m03_m03_emptyimg", "m03_m03_onlypos", "m05_m02"])
def golden(request, golden_dir):
    """Recorded regions: arrays, proposals in float64, and predictions that want gradients."""
    with np.load(golden_dir / f"tsd/d2_{request.param}.npz") as file:
        values = {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}
    offsets, sibling_logits, sibling_deltas, logits, deltas = (
        values[key].clone().requires_grad_()
        for key in ("delta_r", "cls_logits", "bbox_pred", "tsd_cls_logits", "tsd_bbox_pred")
    )
    rois, gt_boxes = values["rois"], list(values["gt_boxes"].split(values["num_pos"].tolist()))
    proposals = []
    for image, objects in enumerate(gt_boxes):
        rows = rois[:, 0] == image
        boxes = rois[rows, 1:]
        matched = torch.cat([objects, boxes[len(objects) :]])
        fields = Instances((1000, 1000), gt_classes=values["labels"][rows])
        fields.proposal_boxes, fields.gt_boxes = Boxes(boxes), Boxes(matched)
        fields.proposal_boxes.tensor, fields.gt_boxes.tensor = boxes, matched  # Boxes are float32
        proposals.append(fields)
    shift = float(values["gamma"]) * offsets * (rois[:, 3:] - rois[:, 1:3])
    moved = rois[:, 1:] + torch.cat([shift, shift], dim=1)
    predictions = TSDPredictions(logits, deltas, moved, torch.zeros(0), (sibling_logits, sibling_deltas))
    return values, proposals, predictions, offsets


def test_recorded_constraints(golden, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # Detectron2 decodes in float32
    values, proposals, predictions, offsets = golden
    margins = float(values["margin_cls"]), float(values["margin_loc"])
    branch = make_branch(int(values["num_classes"]), margins=margins)
    losses = branch.losses(predictions, proposals)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(values["rois_r"], predictions.boxes.detach(), **close)
    torch.testing.assert_close(losses["loss_pc_cls"], values["loss_pc_cls"], **close)
    torch.testing.assert_close(losses["loss_pc_loc"], values["loss_pc_loc"], **close)
    (logits_gradient,) = torch.autograd.grad(losses["loss_pc_cls"], predictions.logits, retain_graph=True)
    torch.testing.assert_close(logits_gradient, values["grad_pc_cls_tsd_logits"], **close)
    wanted = predictions.deltas, offsets
    deltas_gradient, offsets_gradient = torch.autograd.grad(losses["loss_pc_loc"], wanted, retain_graph=True)
    torch.testing.assert_close(deltas_gradient, values["grad_pc_loc_tsd_bbox_pred"], **close)
    torch.testing.assert_close(offsets_gradient, values["grad_pc_loc_delta_r"], **close)
    both = losses["loss_pc_cls"] + losses["loss_pc_loc"]
    assert torch.autograd.grad(both, predictions.sibling, allow_unused=True) == (None, None)


def test_recorded_box_loss_has_a_gradient_in_the_moved_boxes(golden):
    values, proposals, predictions, offsets = golden
    targets = MultiLabelTargets.from_proposals(proposals, int(values["num_classes"]))
    loss = multi_label_box_loss(
        predictions.boxes,
        torch.cat([image.gt_boxes.tensor for image in proposals]),
        predictions.deltas,
        targets,
        transform=TRANSFORM,
        smooth_l1_beta=1.0,
    )
    torch.testing.assert_close(loss, values["loss_tsd_bbox"], rtol=0, atol=1e-9)
    gradients = torch.autograd.grad(loss, (predictions.deltas, offsets))
    torch.testing.assert_close(gradients[0], values["grad_tsd_bbox_tsd_bbox_pred"], rtol=0, atol=1e-9)
    torch.testing.assert_close(gradients[1], values["grad_tsd_bbox_delta_r"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("detach", [False, True])
def test_targets_may_be_detached(golden, detach):
    values, proposals, predictions, offsets = golden
    branch = make_branch(int(values["num_classes"]), detach_targets=detach)
    loss = branch.losses(predictions, proposals)["loss_box_reg"]
    (gradient,) = torch.autograd.grad(loss, offsets, allow_unused=True)
    assert gradient is None if detach else gradient.abs().sum() > 0


def test_constraint_forms():
    reference, value = torch.tensor([0.0, 0.5, 0.95, 1.0]), torch.tensor([0.3, 0.4, 1.0, 0.9])
    shrinking = progressive_constraint(reference, value, 0.2)
    torch.testing.assert_close(shrinking, torch.tensor([0.0, 0.3, 0.0, 0.1]))
    constant = progressive_constraint(reference, value, 0.2, "constant")
    torch.testing.assert_close(constant, torch.tensor([0.0, 0.3, 0.15, 0.3]))
    assert not progressive_constraint(value, value, 0.0).any()


def test_the_constraint_of_several_labels_is_the_mean_over_them():
    scores = torch.tensor([[0.9, 0.2, 0.1, 0.4], [0.9, 0.2, 0.1, 0.0], [0.9, 0.2, 0.1, 0.4]])
    reference = torch.full_like(scores, 0.5)
    reference[1, -1] = 0.0
    positive = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    found = classification_constraint(reference, scores, positive, 0.2)
    # the second row is background, of which this loss has no score; the third has no label
    torch.testing.assert_close(found, torch.tensor([(0.0 + 0.5) / 2, 0.0, 0.0]))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_constraint_reads_the_scores_of_the_loss(loss):
    branch = make_branch(loss=loss, constraint_weights=(1.0, 0.0))
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, -1], [0, 0, 1, 0]], dtype=torch.int8)
    proposals = Instances((50, 50), gt_classes=torch.tensor([1, 2, 4]), gt_labels=labels)  # 4 is background
    proposals.proposal_boxes = proposals.gt_boxes = Boxes(torch.tensor([[4.0, 4, 20, 20]]).repeat(3, 1))
    width = branch.predictor.classification_loss.num_logits
    logits, sibling = (random_logits(width, 3, scale=scale) for scale in (1.0, 2.0))
    boxes, deltas = proposals.proposal_boxes.tensor, torch.zeros(3, 16)
    predictions = TSDPredictions(logits, deltas, boxes, torch.zeros(0), (sibling, deltas))
    found = branch.losses(predictions, [proposals])["loss_pc_cls"]

    scores, reference = (branch.predictor.classification_loss.scores(one) for one in (logits, sibling))
    rows = [[0, 1], [2], [4] if reference[2, 4] > 0 else []]
    lacking = [
        sum(max(0, min(reference[row, c] + 0.3, 1) - scores[row, c]) for c in classes) / max(len(classes), 1)
        for row, classes in enumerate(rows)
    ]
    torch.testing.assert_close(found, torch.as_tensor(sum(lacking) / 3))
    assert torch.autograd.grad(found, logits)[0].any()


def test_matched_iou():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 5, 5]], requires_grad=True)
    overlaps = matched_iou(boxes, torch.tensor([[1.0, 0, 3, 2], [4, 4, 5, 5], [5, 5, 5, 5]]))
    torch.testing.assert_close(overlaps, torch.tensor([1 / 3, 0.0, 0.0]))
    overlaps.sum().backward()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_trains_and_detects_with_each_loss(cfg, batch, loss):
    if loss == "ConcurrentSoftmaxLoss":
        cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TRAIN = "softmax"
        cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TEST = "softmax"
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = loss
    model = build_model(cfg)
    losses = training_step(model, batch)[0]
    stages = ["_stage0", "_stage1", "_stage2"] if "Cascade" in cfg.MODEL.ROI_HEADS.NAME else [""]
    own = ["cls", "box_reg", "cls_sibling", "box_reg_sibling", "pc_cls", "pc_loc"]
    assert {f"loss_{name}{stage}" for name in own for stage in stages} <= set(losses)
    assert_trains(losses, model)
    assert len(detect(model, batch)) > 0


def test_images_without_objects_keep_the_keys(cfg, batch):
    model = build_model(cfg)
    both, one = training_step(model, batch)[0], training_step(model, batch[1:])[0]
    assert set(both) == set(one)
    assert_trains(one, model)
    assert all(not value for key, value in one.items() if key.startswith("loss_pc"))


def test_equal_heads_and_no_margin_have_no_constraint(tiny_cfg, batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BRANCH, tiny_cfg.MODEL.TSD.MARGINS = "TSDBoxBranch", (0.0, 0.0)
    tiny_cfg.MODEL.TSD.OFFSET_INIT, tiny_cfg.MODEL.TSD.SAMPLING_RATIO = "zero", 2
    tiny_cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    model = build_model(tiny_cfg)
    heads = model.roi_heads
    for head in (heads.box_branch.regression_head, heads.box_branch.sibling.head):
        head.load_state_dict(heads.box_head.state_dict())
    heads.box_branch.sibling.predictor.load_state_dict(heads.box_predictor.state_dict())
    losses = training_step(model, batch)[0]
    for key in ("loss_cls", "loss_box_reg"):
        torch.testing.assert_close(losses[key], losses[f"{key}_sibling"])
    for key in ("loss_pc_cls", "loss_pc_loc"):
        assert losses[key].item() == pytest.approx(0, abs=1e-6)


def test_unmoved_and_with_equal_heads_it_is_the_plain_detector(tiny_cfg, batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = tiny_cfg.MODEL.TSD.SAMPLING_RATIO
    plain = build_model(tiny_cfg)
    tiny_cfg.MODEL.ROI_BOX_HEAD.BRANCH, tiny_cfg.MODEL.TSD.GAMMA = "TSDBoxBranch", 0.0
    model = build_model(tiny_cfg)
    model.load_state_dict(plain.state_dict(), strict=False)
    model.roi_heads.box_branch.regression_head.load_state_dict(plain.roi_heads.box_head.state_dict())
    assert_same_detections(detect(model, batch), detect(plain, batch))


def test_without_sibling(cfg, batch):
    cfg.MODEL.TSD.SIBLING = False
    with pytest.raises(ConfigError, match="CONSTRAINT_WEIGHTS"):
        build_model(cfg)
    cfg.MODEL.TSD.CONSTRAINT_WEIGHTS = (0.0, 0.0)
    model = build_model(cfg)
    losses = training_step(model, batch)[0]
    assert not any("sibling" in key or "pc" in key for key in losses)
    assert_trains(losses, model)


def test_counters_of_both_heads_count_each_step_once(tiny_cfg, batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BRANCH = "TSDBoxBranch"
    tiny_cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SeesawLoss"
    model = build_model(tiny_cfg)
    training_step(model, batch)
    heads = model.roi_heads
    counts = heads.box_predictor.classification_loss.class_counts
    assert counts.sum() > 0
    assert torch.equal(counts, heads.box_branch.sibling.predictor.classification_loss.class_counts)


def test_a_stage_and_its_sibling_have_one_box_transform(tiny_cfg):
    use_detector(tiny_cfg, "MultiLabelCascadeROIHeads").MODEL.ROI_BOX_HEAD.BRANCH = "TSDBoxBranch"
    heads = build_model(tiny_cfg).roi_heads
    for branch, predictor in zip(heads.box_branch, heads.box_predictor, strict=True):
        assert branch.sibling.predictor.box2box_transform.weights == predictor.box2box_transform.weights


def test_under_autocast_offsets_stay_float32(tiny_cfg, batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BRANCH = "TSDBoxBranch"
    model = build_model(tiny_cfg)
    seen = []
    model.roi_heads.box_branch.delta_c.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        losses = training_step(model, batch)[0]
    assert seen == [torch.float32]
    assert_trains(losses, model)


def test_levels_are_those_of_the_proposals(batch):
    """Zero offsets on two levels: what Detectron2's pooler gives."""
    from detectron2.modeling.poolers import ROIPooler

    pooler = ROIPooler(2, (1 / 4, 1 / 8), 4, "ROIAlignV2", canonical_box_size=32, canonical_level=3)
    branch = make_branch(offset_init="zero")
    branch.attach(pooler, nn.Identity(), branch.predictor)
    features = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]
    boxes = [Boxes(torch.tensor([[4.0, 4, 60, 60], [1, 1, 9, 9]])), Boxes(torch.tensor([[3.0, 5, 50, 40]]))]
    pooled = pooler(features, boxes)
    for found in branch._pool_moved(features, boxes, *branch._offsets(pooled)):
        torch.testing.assert_close(found, pooled)


def test_weights_without_the_sibling_are_complete(cfg, batch, tmp_path):
    model = build_model(cfg)
    training_step(model, batch)  # so that batch normalisation has seen pixels
    ClassAwareCheckpointer(model, str(tmp_path)).save("model_final")
    weights = read_weights(tmp_path / "model_final.pth").tensors
    assert set(model.state_dict()) - set(weights) == {n for n in model.state_dict() if "sibling" in n}
    torch.save({"model": weights}, tmp_path / "published.pth")
    other = build_model(cfg)
    ClassAwareCheckpointer(other, complete=True).load(str(tmp_path / "published.pth"))
    assert_same_detections(detect(other, batch), detect(model, batch))


def test_training_resumes_with_the_sibling(cfg, tmp_path):
    model = build_model(cfg)
    ClassAwareCheckpointer(model, str(tmp_path)).save("model_0000001")
    other = build_model(cfg)
    ClassAwareCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("POOLING", "round"),
        ("OFFSET_INIT", "ones"),
        ("CONSTRAINT", "growing"),
        ("MARGINS", (0.3,)),
        ("MARGINS", (0.3, 1.3)),
        ("CONSTRAINT_WEIGHTS", (-1.0, 0.0)),
    ],
)
def test_wrong_keys(tiny_cfg, key, value):
    tiny_cfg.MODEL.ROI_BOX_HEAD.BRANCH = "TSDBoxBranch"
    tiny_cfg.MODEL.TSD[key] = value
    with pytest.raises(ConfigError, match=f"MODEL.TSD.{key}"):
        build_model(tiny_cfg)
