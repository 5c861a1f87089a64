import pytest
import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from longtail_det2 import model_zoo
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.modeling.roi_heads import MultiLabelCascadeROIHeads
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError


@pytest.fixture
def cascade_cfg(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NAME = "MultiLabelCascadeROIHeads"
    tiny_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    return tiny_cfg


def losses_of(model, batch, seed=0):
    torch.manual_seed(seed)
    with EventStorage(19) as storage:
        return model(batch), storage.latest()


def without_labels(batch):
    for image in batch:
        image["instances"].remove("gt_labels")
    return batch


def twins(cfg):
    """Our model and Detectron2's with the same weights."""
    ours = build_model(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    theirs = build_model(cfg)
    theirs.load_state_dict(ours.state_dict())
    assert type(theirs.roi_heads) is CascadeROIHeads
    return ours, theirs


def test_single_labels_give_detectron2s_losses_and_detections(cascade_cfg, batch):
    torch.manual_seed(0)
    cascade_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    ours, theirs = twins(cascade_cfg)
    batch = without_labels(batch)
    (mine, logged), (other, their_log) = losses_of(ours, batch), losses_of(theirs, batch)
    assert set(mine) == set(other)
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value)
    for name in ("num_fg_samples", "num_bg_samples"):
        assert logged[f"stage2/roi_head/{name}"] == their_log[f"stage2/roi_head/{name}"]
    with torch.no_grad():
        found, expected = (model.eval()(batch)[0]["instances"] for model in (ours, theirs))
    assert len(found) > 0 and torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("loss", ["SoftmaxCrossEntropyLoss", "SigmoidBCELoss"])
def test_trains_on_images_with_and_without_objects(cascade_cfg, batch, loss):
    cascade_cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = loss
    model = build_model(cascade_cfg)
    assert isinstance(model.roi_heads, MultiLabelCascadeROIHeads)
    stages = {f"{name}_stage{k}" for name in ("loss_cls", "loss_box_reg") for k in range(3)}
    for images in (batch, [batch[1], batch[1]]):
        losses, _ = losses_of(model, images)
        assert set(losses) == stages | {"loss_rpn_cls", "loss_rpn_loc"}
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert len(model(batch)) == 2


def test_each_stage_has_a_loss_of_its_own(cascade_cfg):
    losses = [stage.classification_loss for stage in build_model(cascade_cfg).roi_heads.box_predictor]
    assert len({id(loss) for loss in losses}) == 3


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
    losses_of(model, batch)
    assert len(seen) == 3
    for targets in seen:
        first = targets.classes == 0
        assert first.any() and (targets.labels[first][:, :2] == 1).all()


def test_candidates_are_bounded_before_suppression(cascade_cfg, batch):
    torch.manual_seed(0)
    cascade_cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = 3
    model = build_model(cascade_cfg).eval()
    with torch.no_grad():
        assert 0 < len(model(batch[:1])[0]["instances"]) <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False], "CLS_AGNOSTIC_BBOX_REG must be True"),
        (["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)], "got 3, 3, 2, 3: MODEL.ROI_BOX_CASCADE_HEAD.IOUS"),
        (["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.4, 0.6, 0.7)], "IOUS is .0.4.*the first must be the same"),
    ],
)
def test_bad_keys_are_named(cascade_cfg, options, message):
    cascade_cfg.merge_from_list(options)
    with pytest.raises(ConfigError, match=message):
        build_model(cascade_cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda heads: heads.box_heads.pop(), "got 3, 2, 3, 2"),
        (lambda heads: heads.box_predictors[1].update(cls_agnostic_bbox_reg=False), "cls_agnostic_bbox_reg"),
    ],
)
def test_lazy_configs_are_checked_alike(change, message):
    cfg = model_zoo.get_config("shapes/cascade_rcnn_tiny_softmax_shapes.py")
    cfg.train.device, cfg.model.roi_heads.num_classes = "cpu", 4
    build_lazy_model(cfg)
    change(cfg.model.roi_heads)
    with pytest.raises(ConfigError, match=message):
        build_lazy_model(cfg)


def test_one_class(cascade_cfg, batch):
    cascade_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    objects = batch[0]["instances"]
    objects.gt_classes[:] = 0
    for image in batch:
        image["instances"].gt_labels = image["instances"].gt_labels[:, :1].abs()
    objects.gt_labels[:] = 1
    losses, _ = losses_of(build_model(cascade_cfg), batch)
    assert all(value.isfinite() for value in losses.values())
