"""Guided loss scaling, adaptive thresholds, and detectors that train without sampling."""

import numpy as np
import pytest
import torch
from fvcore.nn import smooth_l1_loss
from model_factories import (
    DETECTORS,
    assert_same_detections,
    assert_trains,
    detect,
    multi_label_targets,
    training_step,
    use_detector,
)

from longtail_det2.engine.build import build_model
from longtail_det2.modeling.losses import FrozenGuidedLossScaling, GuidedLossScaling, SigmoidBCELoss
from longtail_det2.modeling.score_thresholds import AdaptiveThresholds, adaptive_thresholds
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

ALL = 1_000_000


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "sampling_free/set_a.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def guided(scaling, classification, *others):
    """The scaled classification loss."""
    return scaling({"loss_cls": classification}, dict(zip("ab", others, strict=False)))["loss_cls"]


@pytest.fixture(params=DETECTORS)
def guided_cfg(request, tiny_cfg):
    """Each detector without any sampling, its losses guided with the published scales."""
    cfg = use_detector(tiny_cfg, request.param)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "NormalizedRPN"
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = ALL
    cfg.MODEL.RPN.POSITIVE_FRACTION = cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    dense = "ROIHeads" not in request.param
    for node, scale in ((cfg.MODEL.RPN, 1.0), (cfg.MODEL.ROI_BOX_HEAD, 2.0), (cfg.MODEL.DENSE_HEAD, 1.0)):
        if dense == (node is cfg.MODEL.DENSE_HEAD):
            node.GUIDED_SCALE, node.LOSS_NORMALIZER = scale, "foreground"
    if dense:
        cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    return cfg


def test_recorded_scales(golden):
    for cls, reg, scale, _, scaled in golden["guided_cls_reg_scale_w_scaledcls"]:
        torch.testing.assert_close(
            guided(GuidedLossScaling(float(scale)), cls, reg), scaled, rtol=1e-9, atol=0
        )


def test_recorded_dense_step(golden):
    logits = golden["gl_logits"].requires_grad_()
    labels, classes = golden["gl_labels"], int(golden["gl_num_classes"])
    targets = MultiLabelTargets.from_classes(labels.clamp(min=0), classes)
    targets.labels[labels < 0] = -1
    positives = ((labels >= 0) & (labels < classes)).sum()
    losses = SigmoidBCELoss(num_classes=classes).unreduced(logits, targets)["loss_cls"].sum() / positives
    box = smooth_l1_loss(golden["gl_reg_diff"], torch.zeros(6, 4), 1 / 9, "sum") / (4 * positives)
    torch.testing.assert_close(losses, golden["gl_cls_loss"], rtol=1e-9, atol=0)
    scaled = guided(GuidedLossScaling(), losses, box)
    torch.testing.assert_close(scaled, golden["gl_scaled"], rtol=1e-9, atol=0)
    scaled.backward()
    torch.testing.assert_close(logits.grad, golden["gl_grad_logits"], rtol=1e-9, atol=1e-15)


def test_recorded_frozen_scales(golden):
    scaling = FrozenGuidedLossScaling(3, warmup=int(golden["fr_warmup"])).double()
    scaling.log_sigmas.data = golden["fr_sigmas"].log()
    for (cls, *others), ratio, total in zip(
        *(golden[f"fr_{name}"] for name in ("losses", "ratio", "total")), strict=True
    ):
        losses = scaling({"loss_cls": cls}, dict(zip("ab", others, strict=True)))
        torch.testing.assert_close(scaling.frozen, ratio, rtol=1e-9, atol=0)
        torch.testing.assert_close(sum(losses.values()), total, rtol=1e-9, atol=0)


def test_a_frozen_scale_is_resumed_and_not_that_of_a_step_without_foreground():
    scaling, one = FrozenGuidedLossScaling(warmup=2), torch.tensor(1.0)
    for box in (0.5, 0.0):
        guided(scaling, one, one * box)
    resumed = FrozenGuidedLossScaling(warmup=2)
    resumed.load_state_dict(scaling.state_dict())
    for again in (scaling, resumed, resumed.eval()):
        assert guided(again, one, one * 7) == 0.5 * 0.5  # sigma is 1


@pytest.mark.parametrize("values", [(2.0, 0.0), (0.0, 3.0), (0.0, 0.0), (1e30, 1e30), (1e-30, 3.0)])
def test_losses_that_are_zero_or_extreme(values):
    cls, box = (torch.tensor(value, requires_grad=True) for value in values)
    losses = GuidedLossScaling()({"loss_cls": cls}, {"loss_box_reg": box})
    sum(losses.values()).backward()
    assert losses["loss_cls"].isfinite() and cls.grad.isfinite() and box.grad == 1


def test_losses_and_gradients_of_each_detector(guided_cfg, batch):
    """Scaled losses are as large as the box loss, and their gradient has the direction of the plain one."""
    model = build_model(guided_cfg)
    losses, logged = training_step(model, batch)
    assert_trains(losses, model)
    pairs = [(name, name.replace("cls", "box_reg")) for name in losses if name.startswith("loss_cls")]
    if "loss_rpn_cls" in losses:
        torch.testing.assert_close(losses["loss_rpn_cls"], losses["loss_rpn_loc"])
    dense = "loss_rpn_cls" not in losses
    for cls, box in pairs:
        others = [losses[box], losses["loss_centerness"]] if "loss_centerness" in losses else [losses[box]]
        expected = (1 if dense else 2) * sum(others) / len(others)
        torch.testing.assert_close(losses[cls], expected)
    parameters = [p for name, p in model.named_parameters() if "cls_score" in name or "objectness" in name]
    scaled = torch.autograd.grad(training_step(model, batch)[0][pairs[0][0]], parameters, allow_unused=True)
    for module in model.modules():
        module.guided_loss = None
    plain_losses, _ = training_step(model, batch)
    plain = torch.autograd.grad(plain_losses[pairs[0][0]], parameters, allow_unused=True)
    weight = next(value for name, (value, _) in logged.items() if "guided/w_loss_cls" in name)
    for one, other in zip(scaled, plain, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other * weight, rtol=1e-4, atol=1e-7)


def test_under_autocast_and_without_objects(guided_cfg, batch):
    model = build_model(guided_cfg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = training_step(model, batch)
    assert_trains(losses, model)
    assert all(value.dtype == torch.float32 for value in losses.values())
    losses, _ = training_step(model, [batch[1], batch[1]])
    assert_trains(losses, model)
    assert sum(value.item() for value in losses.values()) == 0


def test_nothing_is_sampled(guided_cfg, batch):
    """All anchors and proposals have losses where as many are asked for."""
    if guided_cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        pytest.skip("dense detectors never sample")
    _, logged = training_step(build_model(guided_cfg), batch)
    count = {name: value for name, (value, _) in logged.items()}
    assert count["rpn/num_pos_anchors"] + count["rpn/num_neg_anchors"] > 100
    assert count["roi_head/num_bg_samples"] + count["roi_head/num_fg_samples"] >= 20


def test_guided_by_other_losses(tiny_cfg, batch):
    """Seesaw's classes and objectness are scaled together; TSD's two heads each by their own box loss."""
    cfg = use_detector(tiny_cfg, "MultiLabelROIHeads", "SeesawLoss")
    cfg.MODEL.ROI_BOX_HEAD.BRANCH, cfg.MODEL.ROI_BOX_HEAD.GUIDED_SCALE = "TSDBoxBranch", 2.0
    cfg.MODEL.CLASSIFICATION_LOSS.SEESAW.LABELS = "all"
    losses, _ = training_step(build_model(cfg), batch)
    others = {name for name in losses if any(part in name for part in ("box_reg", "_pc_", "_rpn_"))}
    for suffix in ("", "_sibling"):
        own = [one for name, one in losses.items() if name not in others and ("sib" in name) == bool(suffix)]
        assert len(own) == 2
        torch.testing.assert_close(sum(own), 2 * losses["loss_box_reg" + suffix])


def test_recorded_thresholds(golden):
    counts, number, scores = golden["th_counts"], golden["th_N"], golden["th_scores"]
    per_class = adaptive_thresholds(counts.double(), number.double())
    torch.testing.assert_close(per_class, golden["th_theta_nj_over_N"], rtol=1e-9, atol=0)
    assert torch.equal(scores > per_class, golden["th_keep_classwise"])
    for kind, name in (("foreground", "th_scalar_NfN"), ("shared", "th_scalar_pi")):
        found = adaptive_thresholds(counts.double(), number.double(), kind)
        torch.testing.assert_close(found, golden[name].expand(10), rtol=1e-9, atol=0)
    equal = torch.full((4,), 5.0)
    assert torch.equal(adaptive_thresholds(equal, 100), adaptive_thresholds(equal, 100, "shared"))


def test_counts_of_thresholds():
    thresholds, targets = AdaptiveThresholds(5), multi_label_targets()
    assert not thresholds().any()
    for _ in range(2):
        thresholds.update(targets, 100)
    thresholds.eval().update(targets, 100)
    assert thresholds.counts.tolist() == [*(2 * (targets.labels[:, :-1] == 1).sum(dim=0)).tolist(), 200]
    with pytest.raises(ConfigError, match="ADAPTIVE_THRESHOLD"):
        AdaptiveThresholds(5, "per class")


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_exceed_the_adaptive_thresholds(tiny_cfg, batch, name):
    cfg = use_detector(tiny_cfg, name, "SigmoidBCELoss")
    node = cfg.MODEL.ROI_BOX_HEAD if "ROIHeads" in name else cfg.MODEL.DENSE_HEAD
    cfg.TEST.DETECTIONS_PER_IMAGE = ALL
    plain = detect(build_model(cfg), batch)
    node.ADAPTIVE_THRESHOLD = "per_class"
    torch.manual_seed(0)
    model = build_model(cfg)
    training_step(model, batch)
    counted = [module for module in model.modules() if isinstance(module, AdaptiveThresholds)]
    assert counted and all(one.counts[-1] > 10 and one.counts[:2].tolist() != [0, 0] for one in counted)
    for one in counted:  # class 0 passes, class 1 does not, the others as far as their scores go
        one.counts.copy_(torch.tensor([0, 1000, 10, 10, 1000]))
    found = detect(model, batch)
    assert len(found) and len(plain) and 1 not in found.pred_classes and 0 in found.pred_classes
    if name == "MultiLabelFCOS":  # compared before the centerness, which makes scores larger than its square
        model.score_thresholds.fill_(0.5)
        assert not len(detect(model, batch))


def test_more_candidates_than_memory_has_room_for(tiny_cfg, batch, monkeypatch):
    """The best are found part by part as Detectron2 finds them among all."""
    model = build_model(use_detector(tiny_cfg, "MultiLabelRetinaNet"))
    whole = detect(model, batch)
    monkeypatch.setattr("longtail_det2.modeling.meta_arch.dense._PAIRS_AT_ONCE", 10)
    assert_same_detections(detect(model, batch), whole)
    monkeypatch.delattr(type(model).__mro__[1], "_decode_per_level_predictions")
    assert_same_detections(detect(model, batch), whole)
