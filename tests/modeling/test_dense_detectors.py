"""What dense detectors do beyond what all detectors do (test_detectors.py)."""

import pytest
import torch
from model_factories import DETECTORS, detect, training_step, use_detector

from longtail_det2.engine.build import build_model
from longtail_det2.modeling.losses import LossNormalizer, SigmoidBCELoss, background
from longtail_det2.modeling.meta_arch.dense import MultiLabelRetinaNetHead
from longtail_det2.utils.errors import ConfigError

LOSSES = ["SigmoidFocalLoss", "SigmoidBCELoss", "SoftmaxCrossEntropyLoss", "FocalSeesawLoss"]


@pytest.fixture(params=DETECTORS[2:])
def dense_cfg(request, tiny_cfg):
    return use_detector(tiny_cfg, request.param)


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


def test_anchors_of_retinanet_between_the_thresholds_are_ignored(tiny_cfg, batch):
    tiny_cfg.MODEL.RETINANET.IOU_THRESHOLDS = [0.0001, 0.999]
    model = build_model(use_detector(tiny_cfg, "MultiLabelRetinaNet"))
    targets, _ = model.label_objects(
        model.anchor_generator([torch.zeros(2, 8, 8, 8)]), [image["instances"] for image in batch]
    )
    assert (targets.classes == -1).sum() > 20
    losses, _ = training_step(model, batch)
    assert losses["loss_cls"].isfinite()


def test_a_box_can_get_several_labels(dense_cfg, batch):
    model = build_model(dense_cfg)
    torch.nn.init.zeros_(model.head.cls_score.weight)
    model.head.cls_score.bias.data.copy_(
        torch.tensor([3.0, -9, 2, -9]).repeat(len(model.head.cls_score.bias) // 4)
    )
    model.test_score_thresh = 0.1
    found = detect(model, batch)
    boxes = [found.pred_boxes.tensor[found.pred_classes == label] for label in (0, 2)]
    assert set(found.pred_classes.tolist()) == {0, 2}
    assert (boxes[0][:, None] == boxes[1][None]).all(dim=2).any()


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


def test_the_config_chooses_the_kernels(dense_cfg, batch, monkeypatch):
    class Reached(Exception):
        pass

    def kernel(logits, background, rows, form):
        assert len(logits) == len(background) and (form.gamma, form.factor) == (2.0, 0.75)
        raise Reached

    monkeypatch.setattr(background, "triton_serves", lambda logits: True)
    monkeypatch.setattr(background, "focal_background_sum", kernel)
    training_step(build_model(dense_cfg), batch)
    dense_cfg.MODEL.KERNELS = "cuda"
    with pytest.raises(ConfigError, match="KERNELS is 'cuda'"):
        build_model(dense_cfg)
    pytest.importorskip("triton")
    dense_cfg.MODEL.KERNELS = "triton"
    with pytest.raises(Reached):
        training_step(build_model(dense_cfg), batch)
