"""What all four detectors share: Detectron2's values for single labels, training, prediction, thresholds."""

import copy

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from model_factories import (
    DETECTORS,
    assert_same_detections,
    assert_trains,
    detect,
    of_one_class,
    training_step,
    use_detector,
    without_label_matrix,
)
from omegaconf import OmegaConf

from longtail_det2 import model_zoo
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.utils.errors import ConfigError

LOSSES = ["SoftmaxCrossEntropyLoss", "SigmoidBCELoss", "SigmoidFocalLoss", "FocalSeesawLoss"]
FCOS_NAMES = {
    "loss_fcos_cls": "loss_cls",
    "loss_fcos_loc": "loss_box_reg",
    "loss_fcos_ctr": "loss_centerness",
}


@pytest.fixture(params=DETECTORS)
def cfg(request, tiny_cfg):
    return use_detector(tiny_cfg, request.param)


def loss_keys(cfg, loss):
    keys = {"loss_cls", "loss_box_reg"} | ({"loss_objectness"} if "Seesaw" in loss else set())
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return keys | ({"loss_centerness"} if "FCOS" in cfg.MODEL.META_ARCHITECTURE else set())
    if "Cascade" in cfg.MODEL.ROI_HEADS.NAME:
        keys = {f"{key}_stage{stage}" for key in keys for stage in range(3)}
    return keys | {"loss_rpn_cls", "loss_rpn_loc"}


def detectron2s(cfg, ours):
    """Detectron2's own detector with the same weights."""
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        cfg.MODEL.ROI_HEADS.NAME = (
            "CascadeROIHeads" if "Cascade" in cfg.MODEL.ROI_HEADS.NAME else "StandardROIHeads"
        )
        twin = build_model(cfg)
        assert type(twin.roi_heads).__name__ == cfg.MODEL.ROI_HEADS.NAME
    else:
        shapes = [ours.backbone.output_shape()["p3"]]
        common = {"input_shape": shapes, "conv_dims": [8], "num_classes": 4}
        shared = {
            "backbone": ours.backbone,
            "head_in_features": ["p3"],
            "num_classes": 4,
            "pixel_mean": ours.pixel_mean.flatten().tolist(),
            "pixel_std": ours.pixel_std.flatten().tolist(),
            "test_score_thresh": 0.0,
            "test_nms_thresh": ours.test_nms_thresh,
        }
        if isinstance(ours, FCOS):
            twin = FCOS(head=FCOSHead(**common), **shared)
        else:
            twin = RetinaNet(
                head=RetinaNetHead(**common, num_anchors=2),
                anchor_generator=ours.anchor_generator,
                box2box_transform=ours.box2box_transform,
                anchor_matcher=ours.anchor_matcher,
                smooth_l1_beta=ours.smooth_l1_beta,
                **shared,
            )
        twin.head.load_state_dict(ours.head.state_dict())
        return twin
    twin.load_state_dict(ours.state_dict())
    return twin


def test_single_labels_give_detectron2s_losses_gradients_and_detections(cfg, batch):
    torch.manual_seed(0)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    ours = build_model(cfg)
    theirs, batch = detectron2s(cfg, ours), without_label_matrix(batch)
    for _ in range(2):  # the normaliser of dense detectors moves
        (mine, logged), (other, their_log) = training_step(ours, batch), training_step(theirs, batch)
        for name in ("num_pos_anchors", "roi_head/num_fg_samples", "stage2/roi_head/num_fg_samples"):
            assert logged.get(name) == their_log.get(name)
        torch.testing.assert_close(mine, {FCOS_NAMES.get(name, name): value for name, value in other.items()})
    gradients = []
    for model, losses in ((ours, mine), (theirs, other)):
        part = model.head if hasattr(model, "head") else model
        gradients.append(torch.autograd.grad(sum(losses.values()), list(part.parameters())))
    torch.testing.assert_close(*gradients)
    assert_same_detections(detect(ours, batch), detect(theirs, batch))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("name", "agnostic"), [*((one, "Cascade" in one) for one in DETECTORS), (DETECTORS[0], True)]
)
def test_trains_and_predicts_with_and_without_objects(tiny_cfg, batch, name, loss, agnostic):
    cfg = use_detector(tiny_cfg, name, loss)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    model = build_model(cfg)
    for images in (batch, [batch[1], batch[1]]):  # the second batch has no objects
        losses, _ = training_step(model, images)
        assert set(losses) == loss_keys(cfg, loss)
        assert_trains(losses, model)
    boxes = [value for key, value in losses.items() if "loss_box_reg" in key]
    assert not any(boxes) and sum(losses.values()) > 0
    found = detect(model, batch)
    assert len(found) > 0 and found.pred_classes.max() < 4 and found.scores.ndim == 1


def test_one_class(cfg, batch):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    losses, _ = training_step(build_model(cfg), of_one_class(batch))
    assert all(value.isfinite() for value in losses.values())


def test_class_count_of_the_data_must_be_the_models(cfg, batch):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        training_step(build_model(cfg), batch)


BAD = [  # detector, key below MODEL, value, what the message must name
    (DETECTORS[0], "ROI_BOX_HEAD.BRANCH", "TwoFeature", "MODEL.ROI_BOX_HEAD.BRANCH.*'TwoFeature'"),
    (DETECTORS[1], "ROI_BOX_HEAD.BRANCH", "TwoFeature", "MODEL.ROI_BOX_HEAD.BRANCH.*'TwoFeature'"),
    (DETECTORS[1], "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG"),
    (DETECTORS[1], "ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6), "MODEL.ROI_BOX_CASCADE_HEAD.IOUS"),
    (DETECTORS[1], "ROI_BOX_CASCADE_HEAD.IOUS", (0.4, 0.6, 0.7), "IOUS.*0.4"),
    *((one, "RETINANET.NUM_CLASSES", 80, "MODEL.RETINANET.NUM_CLASSES is 80") for one in DETECTORS[2:]),
    *(
        (one, "DENSE_HEAD.CLASSIFICATION_LOSS", "SigmoidFocalLos", "DENSE_HEAD.*'SigmoidFocalLoss'")
        for one in DETECTORS[2:]
    ),
]


@pytest.mark.parametrize(("name", "key", "value", "named"), BAD)
def test_bad_keys_are_named(tiny_cfg, name, key, value, named):
    cfg = use_detector(tiny_cfg, name)
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=named):
        build_model(cfg)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda heads: heads.box_heads.pop(), "got 3, 2, 3, 2"),
        (lambda heads: heads.box_predictors[1].update(cls_agnostic_bbox_reg=False), "cls_agnostic_bbox_reg"),
    ],
)
def test_lazy_configs_of_a_cascade_are_checked_alike(change, named):
    cfg = model_zoo.get_config("openimages/cascade_rcnn_R_50_FPN_OpenImages.py")
    cfg.train.device, cfg.model.roi_heads.num_classes = "cpu", 4
    change(cfg.model.roi_heads)
    with pytest.raises(ConfigError, match=named):
        build_lazy_model(cfg)


@pytest.fixture
def detector(cfg):
    """A detector that detects all four classes with the loss of independent classes."""
    two_stages = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    node = cfg.MODEL.ROI_BOX_HEAD if two_stages else cfg.MODEL.DENSE_HEAD
    node.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 10000
    cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "cls_score" in name:
            torch.nn.init.normal_(parameter, std=0.3 if "roi_heads" in name else 0.03)
    return model


def with_thresholds(model, value):
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(type(module), "test_score_thresh"):
            module.test_score_thresh = value
    return model


def test_a_number_and_a_vector_of_it_detect_the_same(detector, batch):
    scores = detect(with_thresholds(detector, 0.0), batch).scores
    middle = scores.median().item()
    one, each, listed = (
        detect(with_thresholds(detector, value), batch)
        for value in (middle, torch.full((4,), middle), OmegaConf.create([middle] * 4))
    )
    assert 0 < len(one) < len(scores) and one.scores.min() > middle
    assert_same_detections(each, one)
    assert_same_detections(listed, one)


def test_a_vector_cuts_each_class_by_itself(detector, batch):
    everything = detect(with_thresholds(detector, 0.0), batch)
    scores, classes = everything.scores, everything.pred_classes
    gone, halved, *_ = classes.bincount(minlength=4).argsort(descending=True).tolist()
    limits = torch.zeros(4)
    limits[gone], limits[halved] = 2.0, scores[classes == halved].median()
    found = detect(with_thresholds(detector, limits), batch)
    assert (classes == gone).any()
    for label in range(4):
        wanted = scores[(classes == label) & (scores > limits[label])]
        assert torch.equal(found.scores[found.pred_classes == label], wanted)


def test_thresholds_move_with_the_model_and_stay_out_of_checkpoints(detector):
    assert not any("thresh" in name for name in detector.state_dict())
    names = [name for name, _ in detector.named_buffers() if name.endswith("score_thresholds")]
    assert names and all(detector.get_buffer(name).shape == (4,) for name in names)
    assert all(detector.to("meta").get_buffer(name).is_meta for name in names)
    with pytest.raises(ConfigError, match="3 values for 4 classes"):
        with_thresholds(detector, [0.1, 0.2, 0.3])
