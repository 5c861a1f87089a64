"""The contract of `ClassificationLoss`, for every registered loss, and values of the simple losses."""

import copy
import logging
import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.modeling import losses as package
from longtail_det2.modeling.losses import (
    ConcurrentSoftmaxLoss,
    SigmoidBCELoss,
    SigmoidFocalLoss,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
    reduce_losses,
)
from longtail_det2.modeling.meta_arch.dense import dense_unreduced
from longtail_det2.structures.multi_label import BACKGROUND, IGNORE, DenseTargets, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

NAMES = sorted(name for name in package.__all__ if name.endswith("Loss") and name != "ClassificationLoss")
SIGMOID = ("SigmoidBCELoss", "SigmoidFocalLoss")


def make_loss(name: str, num_classes: int = 5, **options):
    if "Concurrent" in name and "rates" not in options:
        generator = torch.Generator().manual_seed(5)
        options["rates"] = torch.rand(num_classes, num_classes, generator=generator)
    return getattr(package, name)(num_classes=num_classes, **options)


def multi_label_targets(rows: int = 12, num_classes: int = 5) -> MultiLabelTargets:
    """Random targets: some background, some ignored entries, several labels per row, one row ignored."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    classes[:2] = num_classes
    labels = torch.randint(-1, 2, (rows, num_classes + 1), generator=generator).to(torch.int8)
    labels[:, -1] = 0
    labels[torch.arange(rows), classes] = 1
    background = classes == num_classes
    labels[background] = 0
    labels[background, -1] = 1
    classes[-1], labels[-1] = -1, -1
    return MultiLabelTargets(classes, labels)


def random_logits(loss, rows, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(7)
    return (scale * torch.randn(rows, loss.num_logits, generator=generator)).to(dtype).requires_grad_()


def total(loss, logits, targets):
    """The sum of the losses' means over the rows."""
    return sum(reduce_losses(loss.unreduced(logits, targets), targets.known.sum().clamp(min=1)).values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [1, 5])
def test_gradients(name, num_classes):
    """Of losses, background losses and scores."""
    targets, loss = multi_label_targets(6, num_classes), make_loss(name, num_classes).double()
    loss.update(targets)
    if "Seesaw" in name:  # the factors count as constants
        loss.q = 0.0
    logits = random_logits(loss, 6, torch.float64)
    for function in (lambda z: loss.unreduced(z, targets), loss.background):
        assert torch.autograd.gradcheck(lambda z, f=function: tuple(f(z).values()), logits)
    assert torch.autograd.gradcheck(loss.scores, logits)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent_and_keys_are_equal(name):
    targets, loss = multi_label_targets(), make_loss(name)
    logits = random_logits(loss, 12)
    whole = loss.unreduced(logits, targets)
    assert all(key.startswith("loss_") and value.shape == (12,) for key, value in whole.items())
    for part in (slice(0, 2), slice(2, 12), slice(0, 0)):  # background only, and nothing
        some = MultiLabelTargets(targets.classes[part], targets.labels[part])
        found = loss.unreduced(logits[part], some)
        assert found.keys() == whole.keys()
        torch.testing.assert_close(found, {key: value[part] for key, value in whole.items()})


@pytest.mark.parametrize("name", NAMES)
def test_background_rows(name):
    loss = make_loss(name)
    logits, background = random_logits(loss, 8), torch.full((8,), 5)
    found = loss.background(logits)
    torch.testing.assert_close(found, loss.unreduced(logits, MultiLabelTargets.from_classes(background, 5)))
    assert sum(value.sum() for value in found.values()) > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_and_only_background_stay_attached(name, rows):
    loss = make_loss(name)
    layer = torch.nn.Linear(3, loss.num_logits)
    value = total(
        loss, layer(torch.zeros(rows, 3)), MultiLabelTargets.from_classes(torch.full((rows,), 5), 5)
    )
    value.backward()
    assert layer.weight.grad is not None and (value > 0) == (rows > 0)
    assert loss.scores(torch.zeros(rows, loss.num_logits)).shape == (rows, 6)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_rows_and_entries(name):
    targets, loss = multi_label_targets(), make_loss(name)
    logits = random_logits(loss, 12)
    found = loss.unreduced(logits, targets)
    assert all(value[-1] == 0 for value in found.values())
    total(loss, logits, targets).backward()
    assert not logits.grad[-1].any() and logits.grad[:-1].any(dim=1).all()
    if name != "SoftmaxCrossEntropyLoss":  # there all but the most specific label are negatives
        assert not logits.grad[:, :5][targets.labels[:, :5] == -1].any()
    nothing = MultiLabelTargets(torch.full((12,), -1), torch.full((12, 6), -1, dtype=torch.int8))
    assert total(loss, logits, nothing) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite(name, scale):
    targets, loss = multi_label_targets(), make_loss(name)
    logits = random_logits(loss, 12, scale=scale)
    value = total(loss, logits, targets)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert loss.scores(logits).isfinite().all()
    assert all(one.isfinite().all() for one in loss.background(logits).values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(name, dtype):
    """Both change nothing: everything is computed in float32."""
    targets, loss = multi_label_targets(), make_loss(name)
    logits = random_logits(loss, 12, dtype)
    wanted = (
        loss.unreduced(logits.float(), targets),
        loss.background(logits.float()),
        loss.scores(logits.float()),
    )
    found = loss.unreduced(logits, targets), loss.background(logits), loss.scores(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss.unreduced(logits, targets), loss.background(logits), loss.scores(logits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(inside, wanted, rtol=0, atol=0)
    total(loss, logits, targets).backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_scores(name):
    loss = make_loss(name)
    scores = loss.scores(random_logits(loss, 9))
    assert scores.shape == (9, 6) and scores.min() >= 0 and scores.max() <= 1
    if name in SIGMOID:
        assert not scores[:, -1].any()
    else:
        assert (scores.sum(dim=1) >= 1 - 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_bias_is_the_score_before_training(name):
    loss = make_loss(name, **({"rates": torch.zeros(5, 5)} if "Concurrent" in name else {}))
    scores = loss.scores(loss.bias(0.02)[None])[0, :5]
    torch.testing.assert_close(scores, torch.full((5,), 0.02 if name in SIGMOID else 0.02 / 5))
    measured = torch.tensor([0.1, 0.001, 0.02, 0.3, 0.05])
    torch.testing.assert_close(loss.scores(loss.bias(measured)[None])[0, :5], measured)
    for bad in (0.0, 1.0, torch.full((4,), 0.1), torch.tensor(float("nan"))):
        with pytest.raises(ConfigError, match="prior"):
            loss.bias(bad)
    if name in SIGMOID:
        torch.testing.assert_close(loss.bias(None), loss.bias(0.01))
    else:
        assert loss.bias(None) is None
        with pytest.raises(ConfigError, match="sum to less than 1"):
            loss.bias(torch.full((5,), 0.3))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs(name):
    """Another width, targets of another kind, of other rows or classes."""
    loss, targets = make_loss(name), multi_label_targets()
    for width in (loss.num_logits - 1, loss.num_logits + 1):
        for call in (loss.scores, loss.background, lambda z: loss.unreduced(z, targets)):
            with pytest.raises(ValueError, match=rf"{name} of 5 classes needs .* \(R, {loss.num_logits}\)"):
                call(torch.zeros(12, width))
    with pytest.raises(TypeError, match=r"needs MultiLabelTargets .*, got Tensor"):
        loss.unreduced(random_logits(loss, 12), targets.classes)
    for rows, classes in ((11, 5), (12, 4)):
        with pytest.raises(ValueError, match=rf"needs labels \(12, 6\) .*, got \({rows}, {classes + 1}\)"):
            loss.unreduced(random_logits(loss, 12), multi_label_targets(rows, classes))
    with pytest.raises(ConfigError, match="at least one class"):
        getattr(package, name)(num_classes=0)


@pytest.mark.parametrize("name", NAMES)
def test_built_by_name(name, caplog):
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = name
    loss = build_classification_loss(cfg, 5)
    assert type(loss) is getattr(package, name) and loss.num_classes == 5
    with caplog.at_level(logging.WARNING):  # what a checkpoint brings is all that it needs
        loss.load_state_dict(make_loss(name).state_dict())
    assert not caplog.records
    loss.unreduced(random_logits(loss, 12), multi_label_targets())


def test_softmax_is_cross_entropy():
    targets, loss = multi_label_targets(), SoftmaxCrossEntropyLoss(num_classes=5)
    logits = random_logits(loss, 12)
    torch.testing.assert_close(
        total(loss, logits, targets), F.cross_entropy(logits, targets.classes, ignore_index=-1)
    )


def test_sigmoid_with_single_labels_is_binary_cross_entropy():
    targets = MultiLabelTargets.from_classes(torch.tensor([0, 4, 2, 5, 5, 1]), 5)
    loss = SigmoidBCELoss(num_classes=5)
    logits = random_logits(loss, 6)
    one_hot = F.one_hot(targets.classes, 6)[:, :5].float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot) * 5  # sum / R = K times the mean
    torch.testing.assert_close(total(loss, logits, targets), expected)


def test_sigmoid_weighs_ignored_entries_with_zero():
    targets, loss = multi_label_targets(), SigmoidBCELoss(num_classes=5)
    logits = random_logits(loss, 12)
    for row, value in enumerate(loss.unreduced(logits, targets)["loss_cls"].tolist()):
        entries = zip(logits[row].tolist(), targets.labels[row].tolist(), strict=False)
        wanted = sum(math.log1p(math.exp(-z if label else z)) for z, label in entries if label != -1)
        assert value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 0.5), (0.75, 0.0)])
def test_focal_loss(alpha, gamma):
    """fvcore's with one label per row, and exact in float64."""
    loss = SigmoidFocalLoss(num_classes=3, alpha=alpha, gamma=gamma)
    logits = random_logits(loss, 4, torch.float64, scale=3.0)
    classes = torch.tensor([0, 3, 2, 3])
    found = loss.unreduced(logits, MultiLabelTargets.from_classes(classes, 3))["loss_cls"]
    truth = F.one_hot(classes, 4)[:, :-1].double()
    expected = sigmoid_focal_loss(logits.float(), truth.float(), alpha=alpha, gamma=gamma).sum(dim=1)
    torch.testing.assert_close(found.float(), expected)
    p = logits.sigmoid()
    right, weight = p * truth + (1 - p) * (1 - truth), alpha * truth + (1 - alpha) * (1 - truth)
    exact = (weight if alpha >= 0 else 1) * (1 - right) ** gamma * -right.log()
    torch.testing.assert_close(found, exact.sum(dim=1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [{"alpha": 1.5}, {"gamma": -1.0}, {"gamma": math.nan}, {"prior_prob": 0.0}])
def test_bad_focal_settings(bad):
    with pytest.raises(ConfigError, match=r"alpha=1.5|gamma=-1.0|gamma=nan|prior must be in \(0, 1\)"):
        SigmoidFocalLoss(num_classes=3, **bad)


def test_reduction():
    unreduced = {"loss_cls": torch.tensor([1.0, 3.0]), "loss_objectness": torch.tensor([2.0, 0.0])}
    assert reduce_losses(unreduced, 2.0) == {"loss_cls": 2.0, "loss_objectness": 1.0}
    # A weight of the classification holds for all of its keys that have no weight of their own.
    weights = {"loss_cls": 3.0, "loss_box_reg": 9.0}
    assert reduce_losses(unreduced, 2, weights) == {"loss_cls": 6.0, "loss_objectness": 3.0}
    weights["loss_objectness"] = 0.0
    assert reduce_losses(unreduced, torch.tensor(2.0), weights) == {"loss_cls": 6.0, "loss_objectness": 0.0}


def dense_targets():
    """Seven anchors: background, ignored, three positives of two objects."""
    matches = torch.tensor([BACKGROUND, 1, IGNORE, 0, 1, BACKGROUND, BACKGROUND])
    classes, rows = torch.tensor([5, 2, -1, 0, 2, 5, 5]), torch.tensor([1, 3, 4])
    labels = torch.tensor([[0, -1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.int8)[matches[rows] - 1]
    return DenseTargets(classes, rows, MultiLabelTargets(classes[rows], labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positives", [True, False])
def test_anchors_are_rows_like_others(name, positives):
    """The form of dense heads equals the full label matrix, in values and gradients."""
    dense, loss = dense_targets(), make_loss(name).double()
    labels = MultiLabelTargets.from_classes(torch.full((7,), 5), 5).labels
    if positives:
        labels[dense.rows], labels[2] = dense.positives.labels, -1
    else:
        background, nothing = torch.full((7,), 5), torch.zeros(0, dtype=torch.int64)
        dense = DenseTargets(background, nothing, MultiLabelTargets(nothing, labels[:0]))
    logits = random_logits(loss, 7, torch.float64, scale=3.0)
    found = reduce_losses(dense_unreduced(loss, logits, dense), 3.0)
    wanted = reduce_losses(loss.unreduced(logits, MultiLabelTargets(dense.classes, labels)), 3.0)
    torch.testing.assert_close(found, wanted)
    one, other = (torch.autograd.grad(sum(values.values()), logits)[0] for values in (found, wanted))
    torch.testing.assert_close(one, other)
    assert one[2].any() != positives


@pytest.mark.parametrize("name", ["ConcurrentSoftmaxLoss", "ConcurrentSeesawLoss"])
def test_statistics_are_kept_by_checkpoints(name, caplog):
    loss, unset = make_loss(name), make_loss(name, rates=None)
    logits, targets, saved = random_logits(loss, 12), multi_label_targets(), copy.deepcopy(unset.state_dict())
    for call in (unset.scores, lambda z: unset.unreduced(z, targets)):
        with pytest.raises(ConfigError, match=rf"{name} has no rates.*DATASETS.STATISTICS.*load weights"):
            call(logits)
    with caplog.at_level(logging.WARNING):
        unset.load_state_dict(loss.state_dict())
        assert torch.equal(unset.scores(logits), loss.scores(logits))
        loss.load_state_dict(saved)  # weights that were saved without rates do not take them away
        assert torch.equal(unset.scores(logits), loss.scores(logits))
    assert not caplog.records
    other = make_loss(name, rates=torch.eye(5) / 2 + 0.1)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(loss.state_dict())
    assert len(caplog.records) == 1 and "MODEL.RESET_WEIGHTS" in caplog.text
    assert torch.equal(other.scores(logits), loss.scores(logits))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_loss(name, 4).load_state_dict(loss.state_dict())


@pytest.mark.parametrize("name", ["ConcurrentSoftmaxLoss", "ConcurrentSeesawLoss"])
def test_the_direction_is_that_of_the_config_with_rates_of_any_weights(name):
    rates = torch.tensor([[0.0, 0.9, 0.2], [0.1, 0.0, 0.6], [0.0, 0.3, 0.0]])
    directed = {
        "given_row": rates,
        "given_column": rates.T,
        "maximum": torch.maximum(rates, rates.T),
    }
    trained = make_loss(name, 3, rates=rates)
    logits, targets = random_logits(trained, 12), multi_label_targets(12, 3)
    for direction, wanted in directed.items():
        loss = make_loss(name, 3, rates=None, direction=direction)
        loss.load_state_dict(trained.state_dict())
        given = make_loss(name, 3, rates=wanted)
        torch.testing.assert_close(loss.scores(logits), given.scores(logits))
        torch.testing.assert_close(loss.unreduced(logits, targets), given.unreduced(logits, targets))
    with pytest.raises(ConfigError, match="DIRECTION"):
        make_loss(name, 3, direction="rows")


@pytest.mark.parametrize("size, value", [(4, 0.0), (5, 1.25), (5, -0.5), (5, math.nan)])
def test_bad_statistics(size, value):
    with pytest.raises(ConfigError, match=r"needs rates of shape \(5, 5\), numbers in \[0, 1.0\]"):
        ConcurrentSoftmaxLoss(num_classes=5, rates=torch.full((size, size), value))


def test_build_errors_name_the_key():
    cfg = get_cfg()
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is -1"):
        build_classification_loss(cfg, -1)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBceLoss"
    with pytest.raises(ConfigError, match=r"CLASSIFICATION_LOSS.*Did you mean 'SigmoidBCELoss'"):
        build_classification_loss(cfg, 3)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB = 0.2
    assert build_classification_loss(cfg, 3).prior_prob == 0.2
