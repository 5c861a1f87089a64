import math

import pytest
import torch
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.modeling.losses import (
    CLASSIFICATION_LOSS_REGISTRY,
    SigmoidBCELoss,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
)
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

LOSSES = [SoftmaxCrossEntropyLoss, SigmoidBCELoss]


def multi_label_targets(rows: int = 12, num_classes: int = 5) -> MultiLabelTargets:
    """Random targets: some background, some ignored entries, several labels a row."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    labels = torch.randint(-1, 2, (rows, num_classes + 1), generator=generator).to(torch.int8)
    labels[:, -1] = 0
    labels[torch.arange(rows), classes] = 1
    background = classes == num_classes
    labels[background] = 0
    labels[background, -1] = 1
    return MultiLabelTargets(classes, labels)


def random_logits(loss, targets, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(7)
    shape = (len(targets), loss.num_logits(targets.num_classes))
    return (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()


def test_softmax_is_cross_entropy():
    targets = multi_label_targets()
    loss = SoftmaxCrossEntropyLoss()
    logits = random_logits(loss, targets)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], F.cross_entropy(logits, targets.classes))


def test_softmax_leaves_out_regions_of_class_minus_one():
    targets = multi_label_targets()
    classes = targets.classes.clone()
    classes[:4] = -1
    loss = SoftmaxCrossEntropyLoss()
    logits = random_logits(loss, targets)
    found = loss(logits, MultiLabelTargets(classes, targets.labels))["loss_cls"]
    torch.testing.assert_close(found, F.cross_entropy(logits, classes, ignore_index=-1))


def test_sigmoid_with_single_labels_is_binary_cross_entropy():
    targets = MultiLabelTargets.from_classes(torch.tensor([0, 4, 2, 5, 5, 1]), 5)
    loss = SigmoidBCELoss()
    logits = random_logits(loss, targets)
    one_hot = F.one_hot(targets.classes, 6)[:, :5].float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot) * 5  # sum / R = K times the mean
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], expected)


def test_sigmoid_weighs_ignored_entries_with_zero():
    targets = multi_label_targets()
    loss = SigmoidBCELoss()
    logits = random_logits(loss, targets)
    total = 0.0
    for row in range(len(targets)):
        for column in range(targets.num_classes):
            truth = int(targets.labels[row, column])
            if truth != -1:
                z = float(logits[row, column].detach())
                total += math.log1p(math.exp(-z if truth else z))
    assert loss(logits, targets)["loss_cls"].item() == pytest.approx(total / len(targets), rel=1e-5)
    loss(logits, targets)["loss_cls"].backward()
    assert not logits.grad[targets.labels[:, :-1] == -1].any()
    assert logits.grad[targets.labels[:, :-1] != -1].all()


def test_sigmoid_background_region_is_negative_for_every_class():
    targets = MultiLabelTargets.from_classes(torch.tensor([3]), 3)
    loss = SigmoidBCELoss()
    found = loss(torch.zeros(1, 3), targets)["loss_cls"]
    assert float(found) == pytest.approx(3 * math.log(2))


def test_sigmoid_prior_is_the_score_before_training():
    loss = SigmoidBCELoss(prior_prob=0.02)
    bias = loss.initial_bias(7)
    torch.testing.assert_close(loss.activation(bias[None])[0, :-1], torch.full((7,), 0.02))


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("num_classes", [1, 5])
def test_gradients(loss_type, num_classes):
    targets = multi_label_targets(6, num_classes)
    loss = loss_type()
    logits = random_logits(loss, targets, torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets)["loss_cls"], logits)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_no_regions(loss_type):
    targets = MultiLabelTargets.from_classes(torch.zeros(0, dtype=torch.int64), 5)
    loss = loss_type()
    layer = torch.nn.Linear(3, loss.num_logits(5))
    found = loss(layer(torch.zeros(0, 3)), targets)["loss_cls"]
    assert found == 0
    found.backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    assert loss.activation(torch.zeros(0, loss.num_logits(5))).shape == (0, 6)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_only_background_keeps_keys_and_graph(loss_type):
    targets = MultiLabelTargets.from_classes(torch.full((4,), 5), 5)
    loss = loss_type()
    logits = random_logits(loss, targets)
    losses = loss(logits, targets)
    assert set(losses) == {"loss_cls"} and losses["loss_cls"] > 0
    losses["loss_cls"].backward()
    assert logits.grad.any()


def test_everything_ignored_costs_nothing():
    labels = torch.full((4, 6), -1, dtype=torch.int8)
    targets = MultiLabelTargets(torch.full((4,), -1), labels)
    for loss_type in LOSSES:
        loss = loss_type()
        logits = random_logits(loss, targets)
        found = loss(logits, targets)["loss_cls"]
        found.backward()
        assert found == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite(loss_type, scale):
    targets = multi_label_targets()
    loss = loss_type()
    logits = random_logits(loss, targets, scale=scale)
    found = loss(logits, targets)["loss_cls"]
    found.backward()
    assert found.isfinite() and logits.grad.isfinite().all()
    assert loss.activation(logits).isfinite().all()


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_evaluated_in_float32(loss_type, dtype):
    targets = multi_label_targets()
    loss = loss_type()
    logits = random_logits(loss, targets, dtype)
    found = loss(logits, targets)["loss_cls"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float(), targets)["loss_cls"])
    found.backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()
    assert loss.activation(logits).dtype == torch.float32


@pytest.mark.parametrize("loss_type", LOSSES)
def test_autocast_changes_nothing_inside(loss_type):
    targets = multi_label_targets()
    loss = loss_type()
    logits = random_logits(loss, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, targets)["loss_cls"]
        scores = loss.activation(logits)
    assert inside.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(inside, loss(logits, targets)["loss_cls"], rtol=0, atol=0)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_scores(loss_type):
    loss = loss_type()
    scores = loss.activation(torch.randn(9, loss.num_logits(4)))
    assert scores.shape == (9, 5)
    assert scores.min() >= 0 and scores.max() <= 1
    if loss_type is SoftmaxCrossEntropyLoss:
        torch.testing.assert_close(scores.sum(1), torch.ones(9))
    else:
        assert not scores[:, -1].any()


def test_build_by_name():
    cfg = get_cfg()
    assert isinstance(build_classification_loss(cfg, 3), SoftmaxCrossEntropyLoss)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB = 0.2
    loss = build_classification_loss(cfg, 3)
    assert isinstance(loss, SigmoidBCELoss) and loss.prior_prob == 0.2
    assert {name for name, _ in CLASSIFICATION_LOSS_REGISTRY} >= {"SoftmaxCrossEntropyLoss", "SigmoidBCELoss"}


def test_build_errors_name_the_key():
    cfg = get_cfg()
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is -1"):
        build_classification_loss(cfg, -1)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBceLoss"
    with pytest.raises(ConfigError, match=r"CLASSIFICATION_LOSS.*Did you mean 'SigmoidBCELoss'"):
        build_classification_loss(cfg, 3)
    with pytest.raises(ConfigError, match="PRIOR_PROB"):
        SigmoidBCELoss(prior_prob=1.0)
