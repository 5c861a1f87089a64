import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.layers import concurrent_softmax_scores, multi_label_seesaw_loss, seesaw_loss
from longtail_det2.modeling.losses import (
    SeesawLoss,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
    check_serves_dense_heads,
)
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

RECORDED = ("C20_mean", "C20_extreme", "C20_p0", "C20_q0")


def single_label(rows=24, ignored=True):
    """Classes 0 to 4, background in a quarter of the rows, one region that is left out."""
    classes = torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(1))
    classes[: rows // 4] = 5
    targets = MultiLabelTargets.from_classes(classes, 5)
    if ignored:
        targets.classes[-1], targets.labels[-1] = -1, -1
    return targets


def several_labels(rows=24):
    targets = single_label(rows)
    foreground = (targets.classes >= 0) & (targets.classes < 5)
    more = torch.randint(-1, 2, (rows, 6), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    more[:, -1] = 0
    labels = torch.where(foreground[:, None] & (targets.labels != 1), more, targets.labels)
    return MultiLabelTargets(targets.classes, labels)


def some_logits(width, rows=24, dtype=torch.float64):
    logits = 2 * torch.randn(rows, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return logits.to(dtype).requires_grad_()


@pytest.mark.parametrize("labels", ["all", "most_specific"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_sequences(golden_dir, name, labels):
    """The whole module through several steps of the released code: counts, losses, scores."""
    with np.load(golden_dir / f"seesaw/seesaw_{name}.npz") as file:
        golden = {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}
    options = {key: float(golden[key]) for key in ("p", "q", "eps")}
    mean = golden["avg_factor_0"].isnan()
    loss = SeesawLoss(num_classes=20, labels=labels, reduction="mean" if mean else "regions", **options)
    for step in range(int(golden["num_steps"])):
        logits = golden[f"logits_{step}"].double().requires_grad_()
        found = loss(logits, MultiLabelTargets.from_classes(golden[f"labels_{step}"], 20))
        assert set(found) == {"loss_cls", "loss_objectness"}
        assert torch.equal(loss.class_counts.double(), golden[f"cum_samples_{step}_f64"])
        # The recorded sums were divided by the number of regions and 1e-7 more.
        shrink = 1.0 if mean else 1 + 1.1920929e-07 / len(logits)
        for key, wanted in (("loss_cls", "classes"), ("loss_objectness", "objectness")):
            value = found[key].detach() / shrink
            torch.testing.assert_close(value, golden[f"loss_{wanted}_{step}_f64"], rtol=1e-10, atol=1e-10)
        (gradient,) = torch.autograd.grad(sum(found.values()) / shrink, logits)
        torch.testing.assert_close(gradient, golden[f"grad_{step}_f64"], rtol=1e-10, atol=1e-10)
        scores = loss.activation(logits).detach()
        torch.testing.assert_close(scores, golden[f"scores_{step}_f64"], rtol=1e-10, atol=1e-10)


def test_without_exponents_it_is_cross_entropy_of_classes_and_objectness():
    targets, logits = single_label(ignored=False), some_logits(7)
    found = SeesawLoss(num_classes=5, p=0, q=0)(logits, targets)
    foreground = targets.classes < 5
    classes = F.cross_entropy(logits[foreground, :5], targets.classes[foreground], reduction="sum") / 24
    torch.testing.assert_close(found["loss_cls"], classes)
    presence = F.cross_entropy(logits[:, 5:], (~foreground).long())
    torch.testing.assert_close(found["loss_objectness"], presence)


def test_without_objectness_and_exponents_it_is_the_softmax_loss():
    targets, logits, other = single_label(), some_logits(6), SoftmaxCrossEntropyLoss()
    loss = SeesawLoss(num_classes=5, p=0, q=0, objectness=False)
    assert loss.num_logits(5) == 6
    torch.testing.assert_close(loss(logits, targets), other(logits, targets))
    torch.testing.assert_close(loss.activation(logits), other.activation(logits))


@pytest.mark.parametrize("objectness", [True, False])
@pytest.mark.parametrize("labels", ["all", "most_specific"])
def test_the_functions_over_the_regions(objectness, labels):
    targets, logits = several_labels(), some_logits(6 + objectness)
    loss = SeesawLoss(num_classes=5, objectness=objectness, labels=labels)
    found, width = loss(logits, targets), 5 if objectness else 6
    counts = loss.class_counts[:5]
    if labels == "all":
        truth = torch.where((targets.classes >= 0)[:, None], targets.labels, 0)
        losses = multi_label_seesaw_loss(logits[:, :width], truth[:, :width], counts)
    else:
        losses = seesaw_loss(logits[:, :width], targets.classes, counts)
    torch.testing.assert_close(found["loss_cls"], losses.sum() / 23)
    assert set(found) == ({"loss_cls", "loss_objectness"} if objectness else {"loss_cls"})


def test_what_is_counted():
    targets = several_labels()
    known = targets.labels[targets.classes >= 0]
    every, one = SeesawLoss(num_classes=5), SeesawLoss(num_classes=5, labels="most_specific")
    for loss in (every, one):
        for _ in range(2):
            loss(some_logits(7), targets)
    assert torch.equal(every.class_counts, 2 * (known == 1).sum(dim=0))
    classes = targets.classes[targets.classes >= 0]
    assert torch.equal(one.class_counts, 2 * torch.bincount(classes, minlength=6))
    assert every.class_counts.dtype == torch.int64 and every.class_counts[-1] == 12


def test_counts_change_in_training_steps_only():
    targets, logits, loss = single_label(), some_logits(7), SeesawLoss(num_classes=5)
    loss.activation(logits)
    with torch.no_grad():
        loss(logits, targets)
    loss.eval()(logits, targets)
    loss.train().counting = False
    loss(logits, targets)
    assert loss.class_counts.eq(0).all()
    loss.counting = True
    loss(logits, targets)
    assert loss.class_counts.sum() == 23


def test_counts_of_the_step_itself_are_in_its_loss():
    targets, logits = single_label(), some_logits(7)
    first = SeesawLoss(num_classes=5)
    again = copy.deepcopy(first)
    found = first(logits, targets)
    again.class_counts.copy_(first.class_counts)
    again.counting = False
    torch.testing.assert_close(again(logits, targets), found)


def test_counts_go_beyond_what_float32_can_count():
    loss = SeesawLoss(num_classes=5)
    loss.class_counts.fill_(2**24)
    loss(some_logits(7), single_label())
    assert loss.class_counts[:5].gt(2**24).all() and loss.class_counts.sum() == 6 * 2**24 + 23


def test_checkpoints_keep_the_counts():
    loss, twin = SeesawLoss(num_classes=5), SeesawLoss(num_classes=5)
    loss(some_logits(7), single_label())
    twin.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {"class_counts"}
    assert torch.equal(twin.class_counts, loss.class_counts) and loss.class_counts.sum() == 23
    with pytest.raises(RuntimeError, match="class_counts"):
        SeesawLoss(num_classes=4).load_state_dict(loss.state_dict())


@pytest.mark.parametrize("objectness", [True, False])
@pytest.mark.parametrize("labels", ["all", "most_specific"])
@pytest.mark.parametrize("what", ["empty", "background", "ignored"])
def test_nothing_to_learn(objectness, labels, what):
    """Keys stay, everything is finite and attached; an all-background batch moves no class logit."""
    rows = 0 if what == "empty" else 8
    targets = MultiLabelTargets.from_classes(torch.full((rows,), 5), 5)
    if what == "ignored":
        targets.classes.fill_(-1)
        targets.labels.fill_(-1)
    logits = some_logits(6 + objectness, rows)
    loss = SeesawLoss(num_classes=5, objectness=objectness, labels=labels, reduction="mean")
    found = loss(logits, targets)
    assert set(found) == ({"loss_cls", "loss_objectness"} if objectness else {"loss_cls"})
    (gradient,) = torch.autograd.grad(sum(found.values()), logits)
    assert all(value.isfinite() for value in found.values()) and gradient.isfinite().all()
    if objectness or what != "background":
        assert found["loss_cls"] == 0 and gradient[:, :5].eq(0).all()
    if what == "ignored":
        assert gradient.eq(0).all() and loss.class_counts.eq(0).all()


def test_scores_sum_to_one():
    for objectness in (True, False):
        scores = SeesawLoss(num_classes=5, objectness=objectness).activation(some_logits(6 + objectness))
        assert scores.shape == (24, 6)
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(24, dtype=torch.float64))
    narrow = SeesawLoss(num_classes=5).activation(some_logits(7, dtype=torch.float16))
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("objectness", [True, False])
def test_concurrent_scores(objectness):
    """Of the classes alone, or with background; without rates they are softmax."""
    logits = some_logits(6 + objectness)
    rates = torch.zeros(5, 5)
    options = {"num_classes": 5, "objectness": objectness, "scores": "concurrent"}
    plain = SeesawLoss(num_classes=5, objectness=objectness).activation(logits)
    torch.testing.assert_close(SeesawLoss(rates=rates, **options).activation(logits), plain)
    rates[0, 1] = 1.0
    loss = SeesawLoss(rates=rates, **options)
    found = loss.activation(logits)
    width = 5 if objectness else 6
    wanted = concurrent_softmax_scores(logits[:, :width], rates.double())[:, :5]
    if objectness:
        wanted = wanted * logits[:, 5:].softmax(dim=1)[:, :1]
    torch.testing.assert_close(found[:, :5], wanted)
    assert (found[:, 0] > plain[:, 0]).all()
    torch.testing.assert_close(found[:, 1:], plain[:, 1:])
    assert set(loss.state_dict()) == {"class_counts", "rates", "rates_known"}
    twin = SeesawLoss(**options)
    with pytest.raises(ConfigError, match="SeesawLoss has no concurrent rates"):
        twin(logits, single_label())
    twin.load_state_dict(loss.state_dict())
    torch.testing.assert_close(twin.activation(logits), found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    targets, logits = several_labels(), some_logits(7, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SeesawLoss(num_classes=5)(logits, targets)
    wanted = SeesawLoss(num_classes=5)(logits.float(), targets)
    torch.testing.assert_close(found, wanted)
    assert found["loss_cls"].dtype == torch.float32


def dense_targets():
    classes = torch.tensor([5, 0, 5, -1, 3, 5, 5, 2])
    labels = torch.tensor([[1, 0, 0, 0, -1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.int8)
    return DenseTargets(classes, torch.tensor([1, 4, 7]), labels)


@pytest.mark.parametrize("labels", ["all", "most_specific"])
def test_dense_form(labels):
    """The classes' loss of the positive anchors, and focal loss of P(foreground) on all but the ignored."""
    logits, targets = some_logits(7, rows=8), dense_targets()
    loss = SeesawLoss(num_classes=5, labels=labels)
    check_serves_dense_heads(loss)
    found = loss.dense_loss(logits, targets, torch.tensor(3.0))
    chosen, counts = logits[targets.rows, :5], loss.class_counts[:5]
    if labels == "all":
        classes = multi_label_seesaw_loss(chosen, targets.labels, counts)
        assert counts.tolist() == [1, 0, 2, 1, 0]
    else:
        classes = seesaw_loss(chosen, targets.classes[targets.rows], counts)
        assert counts.tolist() == [1, 0, 1, 1, 0]
    torch.testing.assert_close(found["loss_cls"], classes.sum() / 3)
    share = logits[:, 5:].softmax(dim=1)[:, 0]
    positive = -0.25 * (1 - share) ** 2 * share.log()
    negative = -0.75 * share**2 * (1 - share).log()
    wanted = positive[targets.rows].sum() + negative[targets.classes == 5].sum()
    torch.testing.assert_close(found["loss_objectness"], wanted / 3)


def test_dense_form_without_objectness():
    logits, targets = some_logits(6, rows=8), dense_targets()
    loss = SeesawLoss(num_classes=5, p=0, q=0, objectness=False, labels="most_specific")
    wanted = SoftmaxCrossEntropyLoss().dense_loss(logits, targets, torch.tensor(3.0))
    torch.testing.assert_close(loss.dense_loss(logits, targets, torch.tensor(3.0)), wanted)
    torch.testing.assert_close(loss.dense_bias(6), SoftmaxCrossEntropyLoss().dense_bias(6))


def test_dense_bias():
    loss = SeesawLoss(num_classes=5, prior_prob=0.02)
    scores = loss.activation(loss.dense_bias(7)[None])
    torch.testing.assert_close(scores[0, :5], torch.full((5,), 0.004))


def test_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SeesawLoss"
    keys = cfg.MODEL.CLASSIFICATION_LOSS.SEESAW
    keys.P, keys.Q, keys.EPS, keys.OBJECTNESS, keys.LABELS = 0.5, 1.0, 0.1, False, "most_specific"
    keys.REDUCTION, keys.SYNC_COUNTS = "mean", False
    loss = build_classification_loss(cfg, 5)
    assert isinstance(loss, SeesawLoss)
    assert (loss.p, loss.q, loss.eps, loss.objectness, loss.labels) == (0.5, 1.0, 0.1, False, "most_specific")
    assert (loss.reduction, loss.sync_counts) == ("mean", False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p": -0.1}, r"SEESAW\.P is -0\.1"),
        ({"q": float("nan")}, r"SEESAW\.Q is nan"),
        ({"eps": 0.0}, r"SEESAW\.EPS is 0\.0"),
        ({"labels": "some"}, r"SEESAW\.LABELS is 'some'; it must be one of all, most_specific"),
        ({"scores": "sum"}, r"SEESAW\.SCORES is 'sum'"),
        ({"scores": "concurrent", "direction": "up"}, r"DIRECTION is 'up'"),
        ({"reduction": "sum"}, r"SEESAW\.REDUCTION is 'sum'"),
        ({"num_classes": 0}, "at least one class"),
        ({"prior_prob": 1.0}, "PRIOR_PROB"),
    ],
)
def test_values_outside_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        SeesawLoss(**{"num_classes": 5, **options})


def test_another_number_of_classes():
    with pytest.raises(ConfigError, match="made for 5 classes, but the classifier has 4"):
        SeesawLoss(num_classes=5).num_logits(4)


def test_one_class():
    targets = MultiLabelTargets.from_classes(torch.tensor([0, 1, 0]), 1)
    found = SeesawLoss(num_classes=1)(some_logits(3, rows=3), targets)
    assert found["loss_cls"] == 0 and found["loss_objectness"] > 0
