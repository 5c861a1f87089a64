"""Score thresholds per class, in all four detectors."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from longtail_det2.utils.errors import ConfigError

DETECTORS = ["MultiLabelROIHeads", "MultiLabelCascadeROIHeads", "MultiLabelRetinaNet", "MultiLabelFCOS"]


@pytest.fixture(params=DETECTORS)
def detector(request, tiny_cfg):
    """A detector that detects all four classes with the loss of independent classes."""
    cfg = tiny_cfg
    if "ROIHeads" in request.param:
        cfg.MODEL.ROI_HEADS.NAME = request.param
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    else:
        cfg.MODEL.META_ARCHITECTURE = request.param
        cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.FCOS.IN_FEATURES = ["p3"]
        cfg.MODEL.RETINANET.NUM_CONVS = cfg.MODEL.FCOS.NUM_CONVS = 1
        cfg.MODEL.FCOS.NORM = ""
        cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 10000
    cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    torch.manual_seed(0)
    model = build_model(cfg).eval()
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


def detect(model, batch):
    with torch.no_grad():
        found = model(batch[:1])[0]["instances"]
    return {name: found.get(name) for name in ("pred_classes", "scores")} | {"boxes": found.pred_boxes.tensor}


def test_a_number_and_a_vector_of_it_detect_the_same(detector, batch):
    scores = detect(with_thresholds(detector, 0.0), batch)["scores"]
    middle = scores.median().item()
    one, each, listed = (
        detect(with_thresholds(detector, value), batch)
        for value in (middle, torch.full((4,), middle), OmegaConf.create([middle] * 4))
    )
    assert 0 < len(one["scores"]) < len(scores) and one["scores"].min() > middle
    for name, values in one.items():
        assert torch.equal(values, each[name]) and torch.equal(values, listed[name])


def test_a_vector_cuts_each_class_by_itself(detector, batch):
    everything = detect(with_thresholds(detector, 0.0), batch)
    scores, classes = everything["scores"], everything["pred_classes"]
    gone, halved, *_ = classes.bincount(minlength=4).argsort(descending=True).tolist()
    limits = torch.zeros(4)
    limits[gone], limits[halved] = 2.0, scores[classes == halved].median()
    found = detect(with_thresholds(detector, limits), batch)
    assert (classes == gone).any()
    for label in range(4):
        wanted = scores[(classes == label) & (scores > limits[label])]
        assert torch.equal(found["scores"][found["pred_classes"] == label], wanted)


def test_thresholds_move_with_the_model_and_stay_out_of_checkpoints(detector):
    assert not any("thresh" in name for name in detector.state_dict())
    names = [name for name, _ in detector.named_buffers() if name.endswith("score_thresholds")]
    assert names and all(detector.get_buffer(name).shape == (4,) for name in names)
    assert all(detector.to("meta").get_buffer(name).is_meta for name in names)


def test_the_number_of_thresholds_is_that_of_the_classes(detector):
    with pytest.raises(ConfigError, match="3 values for 4 classes"):
        with_thresholds(detector, [0.1, 0.2, 0.3])
