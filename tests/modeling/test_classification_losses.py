"""The contract of `ClassificationLoss`, for every registered loss, and values of the simple losses."""

import copy
import logging
import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from model_factories import make_loss, multi_label_targets, random_logits, single_label_targets, some_rates
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.layers import concurrent_softmax_loss, concurrent_softmax_scores, multi_label_softmax_loss
from longtail_det2.modeling import losses as package
from longtail_det2.modeling.losses import background, build_classification_loss, reduce_losses
from longtail_det2.modeling.meta_arch.dense import dense_losses
from longtail_det2.structures.multi_label import BACKGROUND, IGNORE, DenseTargets, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

NAMES = sorted(name for name in package.__all__ if name.endswith("Loss") and name != "ClassificationLoss")
SIGMOID = (
    *("SigmoidBCELoss", "SigmoidFocalLoss"),
    *("DistributionBalancedLoss", "AsymmetricLoss", "MultiFocalModifierLoss"),
)
WITH_RATES = ("ConcurrentSoftmaxLoss", "ConcurrentSeesawLoss")
FORMS = ("concurrent", "softmax")
VARIANTS = {
    "ConcurrentSoftmaxLoss as softmax": {"train": "softmax", "test": "softmax"},
    "SeesawLoss of one label": {"labels": "most_specific", "objectness": False},
    "DistributionBalancedLoss of class weights": {"weighting": "class_balanced", "gamma": 0.5},
    "MultiFocalModifierLoss without margin": {"margin": 0.0, "gamma_positive": 1.0},
}
every_loss = pytest.mark.parametrize("name", NAMES)
every_form = pytest.mark.parametrize("name", [*NAMES, *VARIANTS])


def make_form(name, num_classes=5):
    return make_loss(name.split()[0], num_classes, **VARIANTS.get(name, {}))


def total(loss, logits, targets):
    """The sum of the losses' means over the rows."""
    return sum(reduce_losses(loss.unreduced(logits, targets), targets.known.sum().clamp(min=1)).values())


def results(loss, logits, targets):
    return loss.unreduced(logits, targets), loss.background(logits), loss.scores(logits)


@every_form
@pytest.mark.parametrize("num_classes", [1, 5])
def test_gradcheck(name, num_classes):
    targets, loss = multi_label_targets(6, num_classes), make_form(name, num_classes).double()
    loss.update(targets)
    if "Seesaw" in name:  # the factors count as constants
        loss.q = 0.0
    loss.detach_focus = False
    logits = random_logits(loss, 6, torch.float64)
    for function in (lambda z: loss.unreduced(z, targets), loss.background):
        assert torch.autograd.gradcheck(lambda z, f=function: tuple(f(z).values()), logits)
    assert torch.autograd.gradcheck(loss.scores, logits)


@every_form
def test_rows_are_independent_and_keys_are_equal(name):
    targets, loss = multi_label_targets(), make_form(name)
    logits = random_logits(loss)
    whole = loss.unreduced(logits, targets)
    assert all(key.startswith("loss_") and value.shape == (12,) for key, value in whole.items())
    for part in (slice(0, 2), slice(2, 12), slice(0, 0)):  # background only, and nothing
        some = MultiLabelTargets(targets.classes[part], targets.labels[part])
        found = loss.unreduced(logits[part], some)
        assert found.keys() == whole.keys()
        torch.testing.assert_close(found, {key: value[part] for key, value in whole.items()})
    background = MultiLabelTargets.from_classes(torch.full((12,), 5), 5)
    torch.testing.assert_close(loss.background(logits), loss.unreduced(logits, background))


@every_form
@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_and_only_background_stay_attached(name, rows):
    loss = make_form(name)
    layer = torch.nn.Linear(3, loss.num_logits)
    background = MultiLabelTargets.from_classes(torch.full((rows,), 5), 5)
    value = total(loss, layer(torch.zeros(rows, 3)), background)
    value.backward()
    assert layer.weight.grad is not None and (value > 0) == (rows > 0)
    assert loss.scores(torch.zeros(rows, loss.num_logits)).shape == (rows, 6)


@every_loss
def test_ignored_rows_and_entries(name):
    targets, loss = multi_label_targets(), make_loss(name)
    logits = random_logits(loss)
    assert all(value[-1] == 0 for value in loss.unreduced(logits, targets).values())
    total(loss, logits, targets).backward()
    assert not logits.grad[-1].any() and logits.grad[:-1].any(dim=1).all()
    if name != "SoftmaxCrossEntropyLoss":  # there all but the most specific label are negatives
        assert not logits.grad[:, :5][targets.labels[:, :5] == -1].any()
    nothing = MultiLabelTargets(torch.full((12,), -1), torch.full((12, 6), -1, dtype=torch.int8))
    assert total(loss, logits, nothing) == 0


@every_form
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite_and_as_exact_as_float32_is(name, scale):
    targets, loss = multi_label_targets(), make_form(name)
    logits = random_logits(loss, scale=scale)
    (gradient,) = torch.autograd.grad(total(loss, logits, targets), logits)
    assert gradient.isfinite().all()
    found, wanted = (results(loss, one, targets) for one in (logits, logits.double()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_evaluated_in_float32(name, dtype):
    targets, loss = multi_label_targets(), make_form(name)
    logits = random_logits(loss, dtype=dtype)
    wanted = results(loss, logits.float(), targets)
    torch.testing.assert_close(results(loss, logits, targets), wanted, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(results(loss, logits, targets), wanted, rtol=0, atol=0)
    total(loss, logits, targets).backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


@every_loss
def test_scores_and_bias(name):
    """The bias is the score before training: a prior that is given, measured or the loss's own."""
    loss = make_loss(name, **({"rates": torch.zeros(5, 5)} if "Concurrent" in name else {}))
    independent = name in SIGMOID
    scores = loss.scores(random_logits(loss))
    assert scores.shape == (12, 6) and scores.min() >= 0 and scores.max() <= 1
    assert not scores[:, -1].any() if independent else (scores.sum(dim=1) >= 1 - 1e-6).all()
    scores = loss.scores(loss.bias(0.02)[None])[0, :5]
    torch.testing.assert_close(scores, torch.full((5,), 0.02 if independent else 0.02 / 5))
    measured = torch.tensor([0.1, 0.001, 0.02, 0.3, 0.05])
    torch.testing.assert_close(loss.scores(loss.bias(measured)[None])[0, :5], measured)
    torch.testing.assert_close(loss.bias(None), loss.bias(0.01) if independent else None)
    many = torch.full((5,), 0.3)  # they sum to more than 1
    for bad in (
        0.0,
        1.0,
        torch.full((4,), 0.1),
        torch.tensor(float("nan")),
        *([] if independent else [many]),
    ):
        with pytest.raises(ConfigError, match="prior"):
            loss.bias(bad)


@every_loss
def test_wrong_inputs(name):
    """Another width, targets of another kind, of other rows or classes."""
    loss, targets = make_loss(name), multi_label_targets()
    for width in (loss.num_logits - 1, loss.num_logits + 1):
        for call in (loss.scores, loss.background, lambda z: loss.unreduced(z, targets)):
            with pytest.raises(ValueError, match=rf"{name} .*\(R, {loss.num_logits}\)"):
                call(torch.zeros(12, width))
    with pytest.raises(TypeError, match="MultiLabelTargets"):
        loss.unreduced(random_logits(loss), targets.classes)
    for rows, classes in ((11, 5), (12, 4)):
        with pytest.raises(ValueError, match=rf"\(12, 6\) .*\({rows}, {classes + 1}\)"):
            loss.unreduced(random_logits(loss), multi_label_targets(rows, classes))


@every_loss
def test_built_by_name(name, caplog):
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = name
    loss = build_classification_loss(cfg, 5)
    assert type(loss) is getattr(package, name) and loss.num_classes == 5
    with caplog.at_level(logging.WARNING):  # what a checkpoint brings is all that it needs
        loss.load_state_dict(make_loss(name).state_dict())
    assert not caplog.records
    loss.unreduced(random_logits(loss), multi_label_targets())


CONFIGURED = [  # loss, key of MODEL.CLASSIFICATION_LOSS, value, attribute
    ("SigmoidBCELoss", "SIGMOID_BCE.PRIOR_PROB", 0.2, "prior_prob"),
    ("ConcurrentSoftmaxLoss", "CONCURRENT_SOFTMAX.TRAIN", "softmax", "train_form"),
    ("ConcurrentSoftmaxLoss", "CONCURRENT_SOFTMAX.TEST", "softmax", "test_form"),
    ("SeesawLoss", "SEESAW.OBJECTNESS", False, "objectness"),
    ("ConcurrentFocalSeesawLoss", "SEESAW.P", 0.5, "p"),
    ("ConcurrentFocalSeesawLoss", "SEESAW.LABELS", "most_specific", "labels"),
    ("ConcurrentFocalSeesawLoss", "FOCAL_SEESAW.ALPHA", 0.4, "focal_alpha"),
    ("DistributionBalancedLoss", "DISTRIBUTION_BALANCED.NEGATIVE_SCALE", 5.0, "negative_scale"),
    ("AsymmetricLoss", "ASYMMETRIC.GAMMA_POSITIVE", 1.0, "gamma_positive"),
    ("MultiFocalModifierLoss", "MULTI_FOCAL.POWER", 0.5, "power"),
    ("MultiFocalModifierLoss", "MULTI_FOCAL.DETACH_FOCUS", False, "detach_focus"),
]


@pytest.mark.parametrize(("name", "key", "value", "attribute"), CONFIGURED)
def test_keys_reach_the_loss(name, key, value, attribute):
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = name
    assert getattr(build_classification_loss(cfg, 5), attribute) != value
    cfg.merge_from_list([f"MODEL.CLASSIFICATION_LOSS.{key}", value])
    assert getattr(build_classification_loss(cfg, 5), attribute) == value


BAD = [  # loss, arguments, what the message must name
    *((name, {"num_classes": 0}, "NUM_CLASSES") for name in NAMES),
    ("SigmoidFocalLoss", {"alpha": 1.5}, "alpha"),
    ("SigmoidFocalLoss", {"gamma": math.nan}, "gamma"),
    ("SigmoidFocalLoss", {"prior_prob": 0.0}, "prior"),
    *((name, {"direction": "rows"}, "DIRECTION") for name in WITH_RATES),
    *(("ConcurrentSoftmaxLoss", {key: "sigmoid"}, key.upper()) for key in ("train", "test")),
    ("ConcurrentSoftmaxLoss", {"rates": torch.zeros(4, 4)}, r"rates of shape \(5, 5\)"),
    *(
        ("ConcurrentSoftmaxLoss", {"rates": torch.full((5, 5), value)}, "rates")
        for value in (1.25, -0.5, math.nan)
    ),
    ("SeesawLoss", {"p": -0.1}, r"SEESAW\.P "),
    ("SeesawLoss", {"q": math.nan}, r"SEESAW\.Q "),
    ("SeesawLoss", {"eps": 0.0}, r"SEESAW\.EPS "),
    ("SeesawLoss", {"labels": "some"}, r"SEESAW\.LABELS "),
    ("FocalSeesawLoss", {"focal_gamma": -1.0}, r"FOCAL_SEESAW\..*GAMMA"),
    ("FocalSeesawLoss", {"objectness": False}, r"SEESAW\.OBJECTNESS"),
    ("DistributionBalancedLoss", {"weighting": "rare"}, r"DISTRIBUTION_BALANCED\.WEIGHTING "),
    ("DistributionBalancedLoss", {"negative_scale": 0.0}, r"DISTRIBUTION_BALANCED\.NEGATIVE_SCALE "),
    ("DistributionBalancedLoss", {"image_counts": torch.ones(5)}, "num_images"),
    (
        "DistributionBalancedLoss",
        {"image_counts": torch.full((5,), 9), "num_images": 8},
        "image_counts",
    ),
    ("AsymmetricLoss", {"margin": 1.0}, r"ASYMMETRIC\.MARGIN "),
    ("MultiFocalModifierLoss", {"margin": 1.0}, r"MULTI_FOCAL\.MARGIN "),
    *(("MultiFocalModifierLoss", {"power": one}, r"MULTI_FOCAL\.POWER ") for one in (-0.1, math.nan)),
    ("MultiFocalModifierLoss", {"image_counts": torch.ones(4)}, r"image_counts of shape \(5,\)"),
]


@pytest.mark.parametrize(("name", "options", "key"), BAD)
def test_bad_arguments_are_named(name, options, key):
    with pytest.raises(ConfigError, match=key):
        make_loss(name, **{"num_classes": 5, **options})


def test_sigmoid_is_binary_cross_entropy_and_ignored_entries_weigh_zero():
    targets, loss = multi_label_targets(), make_loss("SigmoidBCELoss")
    logits, labels = random_logits(loss), targets.labels[:, :5]
    wanted = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).float(), (labels != -1).float(), reduction="none"
    )
    torch.testing.assert_close(loss.unreduced(logits, targets)["loss_cls"], wanted.sum(dim=1))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 0.5), (0.75, 0.0)])
def test_focal_loss(alpha, gamma):
    """fvcore's with one label per row, and exact in float64."""
    loss = make_loss("SigmoidFocalLoss", 3, alpha=alpha, gamma=gamma)
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


def dense_targets():
    """Seven anchors: background, ignored, three positives of two objects."""
    matches = torch.tensor([BACKGROUND, 1, IGNORE, 0, 1, BACKGROUND, BACKGROUND])
    classes, rows = torch.tensor([5, 2, -1, 0, 2, 5, 5]), torch.tensor([1, 3, 4])
    labels = torch.tensor([[0, -1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.int8)[matches[rows] - 1]
    return DenseTargets(classes, rows, MultiLabelTargets(classes[rows], labels))


@every_loss
@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize("at_once", [1000, 15])
def test_anchors_are_rows_like_others(monkeypatch, name, positives, at_once):
    """The form of dense heads equals the full label matrix, in values and gradients; also part by part."""
    monkeypatch.setitem(background.ENTRIES_AT_ONCE, "cpu", at_once)
    dense, loss = dense_targets(), make_loss(name).double()
    labels = MultiLabelTargets.from_classes(torch.full((7,), 5), 5).labels
    if positives:
        labels[dense.rows], labels[2] = dense.positives.labels, -1
    else:
        nothing = torch.zeros(0, dtype=torch.int64)
        dense = DenseTargets(torch.full((7,), 5), nothing, MultiLabelTargets(nothing, labels[:0]))
    logits = random_logits(loss, 7, torch.float64, scale=3.0)
    found = reduce_losses(dense_losses(loss, logits, dense), 3.0)
    wanted = reduce_losses(loss.unreduced(logits, MultiLabelTargets(dense.classes, labels)), 3.0)
    torch.testing.assert_close(found, wanted)
    one, other = (torch.autograd.grad(sum(values.values()), logits)[0] for values in (found, wanted))
    torch.testing.assert_close(one, other)
    assert one[2].any() != positives


def gradient_of(model, features, targets):
    """Of the loss of one step, for the parameters of layer and loss."""
    layer, loss = model
    losses = dense_losses(loss, layer(features), targets)
    return torch.autograd.grad(sum(losses.values()) / 7, list(model.parameters()))


@pytest.mark.parametrize("autocast", [False, True])
def test_anchors_part_by_part_equal_all_at_once(monkeypatch, autocast):
    """Under autocast too, where the gradient of the logits has half precision."""
    dense, loss = dense_targets(), make_loss("SigmoidFocalLoss")
    model = torch.nn.ModuleList([torch.nn.Linear(3, 5), loss])
    features, found = torch.randn(7, 3), []
    for at_once in (1000, 10):
        monkeypatch.setitem(background.ENTRIES_AT_ONCE, "cpu", at_once)
        with torch.autocast("cpu", torch.bfloat16, autocast):
            found.append(gradient_of(model, features, dense))
    torch.testing.assert_close(*found, rtol=1e-2 if autocast else 1e-6, atol=1e-7)


def test_what_a_loss_learns_has_a_gradient_for_many_anchors(monkeypatch):
    class Tempered(package.SigmoidBCELoss):
        def __init__(self):
            super().__init__(num_classes=5)
            self.temperature = torch.nn.Parameter(torch.tensor(2.0))

        def background(self, logits):
            return super().background(logits / self.temperature)

    monkeypatch.setitem(background.ENTRIES_AT_ONCE, "cpu", 10)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 5), Tempered()])
    assert all(gradient.any() for gradient in gradient_of(model, torch.randn(7, 3), dense_targets()))
    assert background.focal_form(model[1]) is None  # of the class that it extends, and no longer its own


@pytest.mark.parametrize("train", FORMS)
@pytest.mark.parametrize("test", FORMS)
def test_concurrent_softmax(train, test):
    """Of the functions of rows; with single labels and without rates it is the softmax loss."""
    targets, logits, rates = multi_label_targets(), random_logits(6), some_rates()
    loss = make_loss("ConcurrentSoftmaxLoss", train=train, test=test)
    losses = {
        "concurrent": concurrent_softmax_loss(logits, targets.labels, rates),
        "softmax": multi_label_softmax_loss(logits, targets.labels),
    }
    scores = {"concurrent": concurrent_softmax_scores(logits, rates), "softmax": logits.softmax(dim=1)}
    torch.testing.assert_close(loss.unreduced(logits, targets), {"loss_cls": losses[train]})
    torch.testing.assert_close(loss.scores(logits), scores[test])
    loss = make_loss("ConcurrentSoftmaxLoss", train=train, test=test, rates=torch.zeros(5, 5))
    targets, plain = single_label_targets(), make_loss("SoftmaxCrossEntropyLoss")
    torch.testing.assert_close(results(loss, logits, targets), results(plain, logits, targets))
    loss = make_loss("ConcurrentSoftmaxLoss", train=train, test=test, rates=None)
    if train == test == "softmax":
        assert loss.unreduced(logits, targets)["loss_cls"].sum() > 0
    else:  # also where only the scores use rates: the checkpoint would have none
        with pytest.raises(ConfigError, match=r"rates.*DATASETS.STATISTICS"):
            loss.unreduced(logits, targets)


@pytest.mark.parametrize("name", WITH_RATES)
def test_rates_are_kept_by_checkpoints(name, caplog):
    loss, unset = make_loss(name), make_loss(name, rates=None)
    logits, targets, saved = random_logits(loss), multi_label_targets(), copy.deepcopy(unset.state_dict())
    for call in (unset.scores, lambda z: unset.unreduced(z, targets)):
        with pytest.raises(ConfigError, match=r"rates.*DATASETS.STATISTICS"):
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


@pytest.mark.parametrize("name", WITH_RATES)
def test_the_config_says_how_rates_are_read_and_a_checkpoint_keeps_them_as_counted(name):
    trained = make_loss(name)
    rates, logits, targets = trained.rates.clone(), random_logits(trained), multi_label_targets()
    directed = {"given_row": rates, "given_column": rates.T, "maximum": torch.maximum(rates, rates.T)}
    for direction, wanted in directed.items():
        loss = make_loss(name, rates=None, direction=direction)
        loss.load_state_dict(trained.state_dict())
        assert torch.equal(loss.rates, rates)
        given = make_loss(name, rates=wanted)
        torch.testing.assert_close(loss.scores(logits), given.scores(logits))
        torch.testing.assert_close(loss.unreduced(logits, targets), given.unreduced(logits, targets))
