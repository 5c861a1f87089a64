"""A method's own box branch in the standard heads and in every stage of a cascade; names of the parts."""

import copy

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from model_factories import DETECTORS, detect, training_step, use_detector
from torch import nn

from longtail_det2 import model_zoo
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.modeling.roi_heads import BOX_BRANCH_REGISTRY, BoxBranch, with_suffix
from longtail_det2.utils.errors import ConfigError

HEADS = DETECTORS[:2]


@BOX_BRANCH_REGISTRY.register()
class TwoFeatures(BoxBranch):
    """Pools two boxes per proposal, and has a second head and a loss of its own in training."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        size = input_shape.channels * input_shape.height * input_shape.width
        self.shift = nn.Linear(size, 2)
        self.sibling = nn.Linear(size, cfg.MODEL.ROI_BOX_HEAD.FC_DIM)

    def forward(self, features, proposals):
        boxes = [image.proposal_boxes for image in proposals]
        pooled = self.pooler(features, boxes)
        offsets = self.shift(pooled.flatten(1)).split([len(one) for one in boxes])
        moved = copy.deepcopy(boxes)
        for one, offset in zip(moved, offsets, strict=True):
            one.tensor = one.tensor + torch.cat([offset, offset], dim=1).detach()
        predictions = self.predictor(self.head(self.pooler(features, moved)))
        if not self.training:
            return predictions, None
        return predictions, (self.predictor(self.sibling(pooled.flatten(1))), torch.cat(offsets))

    def losses(self, predictions, proposals):
        main, (sibling, offsets) = predictions
        return {
            **super().losses(main, proposals),
            **with_suffix(super().losses(sibling, proposals), "_sibling"),
            "loss_shift": offsets.square().mean(),
        }

    def scores(self, predictions, proposals):
        return super().scores(predictions[0], proposals)

    def boxes(self, predictions, proposals):
        return super().boxes(predictions[0], proposals)


@pytest.fixture(params=HEADS)
def cfg(request, tiny_cfg):
    use_detector(tiny_cfg, request.param).MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    return tiny_cfg


def test_a_method_brings_its_branch(cfg, batch):
    cfg.MODEL.ROI_BOX_HEAD.BRANCH = "TwoFeatures"
    model = build_model(cfg)
    losses = training_step(model, batch)[0]
    stages = ["_stage0", "_stage1", "_stage2"] if "Cascade" in cfg.MODEL.ROI_HEADS.NAME else [""]
    own = ["loss_cls", "loss_box_reg", "loss_cls_sibling", "loss_box_reg_sibling", "loss_shift"]
    assert {f"{name}{stage}" for name in own for stage in stages} <= set(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(detect(model, batch)) > 0
    assert any("box_branch" in name and "sibling" in name for name in model.state_dict())


class Doubled(BoxBranch):
    def losses(self, predictions, proposals):
        return {name: 2 * value for name, value in super().losses(predictions, proposals).items()}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("shapes/faster_rcnn_tiny_softmax_shapes.py", 1),
        ("openimages/cascade_rcnn_R_50_FPN_OpenImages.py", 3),
    ],
)
def test_lazy_configs_hand_branches_in(batch, name, stages):
    cfg = model_zoo.get_config(name)
    cfg.train.device, cfg.model.roi_heads.num_classes = "cpu", 4
    torch.manual_seed(0)
    before = training_step(build_lazy_model(cfg), batch)[0]
    branches = [LazyCall(Doubled)() for _ in range(stages)]
    cfg.model.roi_heads.update({"box_branch": branches[0]} if stages == 1 else {"box_branches": branches})
    torch.manual_seed(0)
    after = training_step(build_lazy_model(cfg), batch)[0]
    for key, value in after.items():
        torch.testing.assert_close(value, (1 if "rpn" in key else 2) * before[key])


def test_a_replaced_part_is_used(cfg, batch):
    """As users of Detectron2 do it: model.roi_heads.box_predictor = ..."""
    model = build_model(cfg)
    before = training_step(model, batch)[0]
    heads = model.roi_heads
    stages = heads.box_predictor if isinstance(heads.box_predictor, nn.ModuleList) else [heads.box_predictor]
    zeros = [copy.deepcopy(one) for one in stages]
    for one in zeros:
        nn.init.zeros_(one.cls_score.weight)
    heads.box_predictor = nn.ModuleList(zeros) if len(zeros) > 1 else zeros[0]
    after = training_step(model, batch)[0]
    names = [name for name in after if name.startswith("loss_cls")]
    assert names and all(after[name] != before[name] for name in names)
    for name in names:
        assert after[name].item() == pytest.approx(torch.tensor(5.0).log().item(), rel=1e-5)


def test_copies_of_a_model_have_their_own_parts(cfg, batch):
    model = build_model(cfg)
    training_step(model, batch)[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert training_step(model, batch)[0]["loss_rpn_cls"] != training_step(other, batch)[0]["loss_rpn_cls"]
    assert all(p.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("weight"))


def test_predictors_of_detectron2_are_refused():
    foreign = FastRCNNOutputLayers(6, box2box_transform=Box2BoxTransform((1, 1, 1, 1)), num_classes=4)
    with pytest.raises(ConfigError, match="FastRCNNOutputLayers"):
        BoxBranch().attach(nn.Identity(), nn.Identity(), foreign)


@pytest.mark.parametrize(("ours", "theirs"), [(HEADS[0], "StandardROIHeads"), (HEADS[1], "CascadeROIHeads")])
@pytest.mark.parametrize("mask", [False, True])
def test_checkpoints_of_detectron2_have_equal_names(tiny_cfg, ours, theirs, mask):
    """R50-FPN as in Detectron2's model zoo."""
    from detectron2 import model_zoo as detectron2_zoo
    from detectron2.modeling import build_model as build_detectron2_model

    from longtail_det2.config import add_longtail_config

    def settings(cfg, heads):
        cfg.merge_from_file(detectron2_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
        cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "meta", mask, 4
        cfg.MODEL.ROI_HEADS.NAME = heads
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in heads
        return cfg

    with torch.device("meta"):
        reference = build_detectron2_model(settings(detectron2_cfg(), theirs))
        cfg = detectron2_cfg()
        add_longtail_config(cfg)
        model = build_model(settings(cfg, ours))
    wanted = {name: value.shape for name, value in reference.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == wanted
    assert [name for name, _ in model.named_parameters()] == [n for n, _ in reference.named_parameters()]
