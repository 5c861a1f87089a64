import copy

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.events import EventStorage

from longtail_det2.engine.build import build_model
from longtail_det2.modeling.losses import LossNormalizer, SigmoidBCELoss
from longtail_det2.modeling.meta_arch.dense import MultiLabelRetinaNetHead
from longtail_det2.modeling.meta_arch.fcos import centerness_of
from longtail_det2.utils.errors import ConfigError

ARCHITECTURES = ["MultiLabelRetinaNet", "MultiLabelFCOS"]
LOSSES = ["SigmoidFocalLoss", "SigmoidBCELoss", "SoftmaxCrossEntropyLoss", "FocalSeesawLoss"]


@pytest.fixture(params=ARCHITECTURES)
def dense_cfg(request, tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE = request.param
    tiny_cfg.MODEL.RETINANET.IN_FEATURES = tiny_cfg.MODEL.FCOS.IN_FEATURES = ["p3"]
    tiny_cfg.MODEL.RETINANET.NUM_CONVS = tiny_cfg.MODEL.FCOS.NUM_CONVS = 1
    tiny_cfg.MODEL.FCOS.NORM = ""
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = tiny_cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    return tiny_cfg


def run(model, batch):
    with EventStorage() as storage:
        return model(batch), storage.latest()


def single_labels(batch):
    batch = copy.deepcopy(batch)
    for image in batch:
        image["instances"].remove("gt_labels")
    return batch


def detectron2s(model):
    """Detectron2's own detector with the same parts and weights."""
    shapes = [model.backbone.output_shape()["p3"]]
    common = {"input_shape": shapes, "conv_dims": [8], "num_classes": 4}
    shared = {
        **{"backbone": model.backbone, "head_in_features": ["p3"], "num_classes": 4},
        **{
            "pixel_mean": model.pixel_mean.flatten().tolist(),
            "pixel_std": model.pixel_std.flatten().tolist(),
        },
        **{"test_score_thresh": 0.0, "test_nms_thresh": model.test_nms_thresh},
    }
    if isinstance(model, FCOS):
        twin = FCOS(head=FCOSHead(**common), **shared)
    else:
        twin = RetinaNet(
            head=RetinaNetHead(**common, num_anchors=2),
            anchor_generator=model.anchor_generator,
            box2box_transform=model.box2box_transform,
            anchor_matcher=model.anchor_matcher,
            smooth_l1_beta=model.smooth_l1_beta,
            **shared,
        )
    twin.head.load_state_dict(model.head.state_dict())
    return twin


NAMES = {"loss_cls": "loss_fcos_cls", "loss_box_reg": "loss_fcos_loc", "loss_centerness": "loss_fcos_ctr"}


def test_single_labels_give_detectron2s_losses_and_detections(dense_cfg, batch):
    torch.manual_seed(0)
    ours = build_model(dense_cfg)
    theirs = detectron2s(ours)
    batch = single_labels(batch)
    for _ in range(2):  # the normaliser moves
        (mine, logged), (other, their_log) = run(ours, batch), run(theirs, batch)
        assert logged["num_pos_anchors"] == their_log["num_pos_anchors"] and logged["num_pos_anchors"][0] > 0
        for name, value in mine.items():
            expected = other[NAMES[name] if isinstance(ours, FCOS) else name]
            torch.testing.assert_close(value, expected)
    gradients = []
    for losses in (mine, other):
        ours.zero_grad(), theirs.zero_grad()
        sum(losses.values()).backward()
        model = ours if losses is mine else theirs
        gradients.append([p.grad.clone() for p in model.head.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        found, expected = (model.eval()(batch)[0]["instances"] for model in (ours, theirs))
    assert len(found) > 0 and torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("loss", LOSSES)
def test_trains_and_predicts(dense_cfg, batch, loss):
    dense_cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = loss
    model = build_model(dense_cfg)
    keys = {"loss_cls", "loss_box_reg"} | ({"loss_objectness"} if "Seesaw" in loss else set())
    if isinstance(model, FCOS):
        keys.add("loss_centerness")
    for images in (batch, [batch[1], batch[1]]):  # the second batch has no objects
        losses, _ = run(model, images)
        assert set(losses) == keys
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses["loss_box_reg"] == 0 and losses.get("loss_objectness", losses["loss_cls"]) > 0
    with torch.no_grad():
        found = model.eval()(batch)
    assert len(found) == 2 and len(found[0]["instances"]) > 0
    assert found[0]["instances"].pred_classes.max() < 4


@pytest.mark.parametrize("loss", LOSSES)
def test_first_scores_are_low(dense_cfg, batch, loss):
    """Without the loss's bias the background would drown everything in the first steps."""
    dense_cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = loss
    model = build_model(dense_cfg)
    torch.nn.init.zeros_(model.head.cls_score.weight)
    features = [model.backbone(model.preprocess_image(batch).tensor)["p3"]]
    logits = model.head(features)[0][0]
    rows = logits.permute(0, 2, 3, 1).reshape(-1, model.head.num_logits)
    scores = model.head.classification_loss.scores(rows)[:, :-1]
    expected = 0.01 if loss.startswith("Sigmoid") else 0.01 / 4
    torch.testing.assert_close(scores, torch.full_like(scores, expected))


def test_targets_have_all_labels(dense_cfg, batch):
    model = build_model(dense_cfg)
    features = [torch.zeros(2, 8, 8, 8)]
    anchors = model.anchor_generator(features)
    targets, boxes = model.label_objects(anchors, [image["instances"] for image in batch])
    truth = {0: [1, 1, 0, 0], 2: [0, 0, 1, -1]}
    assert set(targets.classes.tolist()) >= {0, 2, 4}
    for row, labels, box in zip(targets.rows, targets.positives.labels, boxes, strict=True):
        label = int(targets.classes[row])
        assert labels.tolist() == [*truth[label], 0]
        assert torch.equal(box, batch[0]["instances"].gt_boxes.tensor[{0: 0, 2: 1}[label]])
    assert (targets.rows < len(targets) // 2).all()  # the second image has no objects


def test_anchors_between_the_thresholds_are_ignored(dense_cfg, batch):
    if dense_cfg.MODEL.META_ARCHITECTURE != "MultiLabelRetinaNet":
        pytest.skip("FCOS has no such anchors")
    dense_cfg.MODEL.RETINANET.IOU_THRESHOLDS = [0.0001, 0.999]
    model = build_model(dense_cfg)
    targets, _ = model.label_objects(
        model.anchor_generator([torch.zeros(2, 8, 8, 8)]), [image["instances"] for image in batch]
    )
    assert (targets.classes == -1).sum() > 20
    losses, _ = run(model, batch)
    assert losses["loss_cls"].isfinite()


def test_a_box_can_get_several_labels(dense_cfg, batch):
    model = build_model(dense_cfg).eval()
    torch.nn.init.zeros_(model.head.cls_score.weight)
    model.head.cls_score.bias.data.copy_(
        torch.tensor([3.0, -9, 2, -9]).repeat(len(model.head.cls_score.bias) // 4)
    )
    model.test_score_thresh = 0.1
    with torch.no_grad():
        found = model(batch)[0]["instances"]
    boxes = [found.pred_boxes.tensor[found.pred_classes == label] for label in (0, 2)]
    assert set(found.pred_classes.tolist()) == {0, 2}
    assert (boxes[0][:, None] == boxes[1][None]).all(dim=2).any()


def test_one_class(dense_cfg, batch):
    dense_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    for image in batch:
        image["instances"].gt_classes[:] = 0
        image["instances"].gt_labels = torch.ones(len(image["instances"]), 1, dtype=torch.int8)
    losses, _ = run(build_model(dense_cfg), batch)
    assert all(value.isfinite() for value in losses.values())


def test_bad_settings_are_named(dense_cfg):
    bad = dense_cfg.clone()
    bad.MODEL.RETINANET.NUM_CLASSES = 80
    with pytest.raises(ConfigError, match=r"MODEL.RETINANET.NUM_CLASSES is 80, but MODEL.ROI_HEADS.*is 4"):
        build_model(bad)
    dense_cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = "SigmoidFocalLos"
    with pytest.raises(
        ConfigError, match=r"MODEL.DENSE_HEAD.CLASSIFICATION_LOSS.*Did you mean 'SigmoidFocalLoss'"
    ):
        build_model(dense_cfg)


def test_a_loss_of_another_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match="made for 4 classes, but its head has 3"):
        MultiLabelRetinaNetHead(
            input_shape=[],
            num_classes=3,
            classification_loss=SigmoidBCELoss(num_classes=4),
            num_anchors=1,
            conv_dims=[],
        )


def test_normaliser_is_kept_by_checkpoints():
    def count(normalizer, foreground):
        return normalizer(1000, torch.tensor(foreground))[0]

    average = LossNormalizer("foreground_average", initial=100.0)
    assert count(average, 50) == pytest.approx(95.0)
    assert count(average, 0) == pytest.approx(0.9 * 95 + 0.1)
    again = LossNormalizer("foreground_average", initial=100.0)
    again.load_state_dict(average.state_dict())
    assert count(again, 7) == count(average, 7)


def test_normaliser_of_several_ranks_is_that_of_one(monkeypatch):
    from detectron2.utils import comm

    def count(foreground):
        return LossNormalizer("foreground_average")(1000, torch.tensor(foreground))[0].item()

    one = count(30)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(30.0))
    halves = [count(10), count(20)]
    # the gradients of the ranks are averaged: (a / n + b / n) / 2 = (a + b) / (2 n)
    assert halves[0] == halves[1] == pytest.approx(one / 2)


def test_centerness():
    distances = torch.tensor([[2.0, 3, 2, 3], [1, 2, 4, 8]])
    torch.testing.assert_close(centerness_of(distances), torch.tensor([1.0, 0.25]))
