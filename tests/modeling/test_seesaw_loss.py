import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.layers import concurrent_softmax_scores, multi_label_seesaw_loss, seesaw_loss
from longtail_det2.modeling.losses import (
    ConcurrentFocalSeesawLoss,
    ConcurrentSeesawLoss,
    FocalSeesawLoss,
    SeesawLoss,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
)
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

RECORDED = ("C20_mean", "C20_extreme", "C20_p0", "C20_q0")


def single_label(rows=24, ignored=True):
    """Classes 0 to 4, background in a quarter of the rows, one row that is left out."""
    classes = torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(1))
    classes[: rows // 4] = 5
    targets = MultiLabelTargets.from_classes(classes, 5)
    if ignored:
        targets.classes[-1], targets.labels[-1] = -1, -1
    return targets


def several_labels(rows=24):
    targets = single_label(rows)
    more = torch.randint(-1, 2, (rows, 6), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    more[:, -1] = 0
    labels = torch.where(targets.foreground[:, None] & (targets.labels != 1), more, targets.labels)
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
    loss = SeesawLoss(num_classes=20, labels=labels, **options)
    for step in range(int(golden["num_steps"])):
        logits = golden[f"logits_{step}"].double().requires_grad_()
        targets = MultiLabelTargets.from_classes(golden[f"labels_{step}"], 20)
        loss.update(targets)
        assert torch.equal(loss.class_counts.double(), golden[f"cum_samples_{step}_f64"])
        found = loss.unreduced(logits, targets)
        assert set(found) == {"loss_cls", "loss_objectness"}
        # The recorded sums were divided by the number of regions and 1e-7 more, or are means over their rows.
        mean = golden["avg_factor_0"].isnan()
        divisor = len(logits) + (0 if mean else 1.1920929e-07)
        sums = {key: value.sum() / divisor for key, value in found.items()}
        if mean:
            sums["loss_cls"] = found["loss_cls"].sum() / targets.foreground.sum().clamp(min=1)
        for key, wanted in (("loss_cls", "classes"), ("loss_objectness", "objectness")):
            value = sums[key].detach()
            torch.testing.assert_close(value, golden[f"loss_{wanted}_{step}_f64"], rtol=1e-10, atol=1e-10)
        (gradient,) = torch.autograd.grad(sum(sums.values()), logits)
        torch.testing.assert_close(gradient, golden[f"grad_{step}_f64"], rtol=1e-10, atol=1e-10)
        scores = loss.scores(logits).detach()
        torch.testing.assert_close(scores, golden[f"scores_{step}_f64"], rtol=1e-10, atol=1e-10)


def test_without_exponents_it_is_cross_entropy_of_classes_and_objectness():
    targets, logits = single_label(ignored=False), some_logits(7)
    found = SeesawLoss(num_classes=5, p=0, q=0).unreduced(logits, targets)
    classes = torch.where(targets.foreground, targets.classes, -1)
    wanted = F.cross_entropy(logits[:, :5], classes, ignore_index=-1, reduction="none")
    torch.testing.assert_close(found["loss_cls"], wanted)
    presence = F.cross_entropy(logits[:, 5:], (~targets.foreground).long(), reduction="none")
    torch.testing.assert_close(found["loss_objectness"], presence)


def test_without_objectness_and_exponents_it_is_the_softmax_loss():
    targets, logits, other = single_label(), some_logits(6), SoftmaxCrossEntropyLoss(num_classes=5)
    loss = SeesawLoss(num_classes=5, p=0, q=0, objectness=False)
    assert loss.num_logits == 6
    torch.testing.assert_close(loss.unreduced(logits, targets), other.unreduced(logits, targets))
    torch.testing.assert_close(loss.background(logits), other.background(logits))
    torch.testing.assert_close(loss.scores(logits), other.scores(logits))
    torch.testing.assert_close(loss.bias(0.1), other.bias(0.1))


@pytest.mark.parametrize("objectness", [True, False])
@pytest.mark.parametrize("labels", ["all", "most_specific"])
def test_the_functions_of_rows(objectness, labels):
    targets, logits = several_labels(), some_logits(6 + objectness)
    loss = SeesawLoss(num_classes=5, objectness=objectness, labels=labels)
    loss.update(targets)
    found, width = loss.unreduced(logits, targets), 5 if objectness else 6
    counts = loss.class_counts[:5]
    if labels == "all":
        truth = torch.where((targets.classes >= 0)[:, None], targets.labels, 0)
        losses = multi_label_seesaw_loss(
            logits[:, :width], truth[:, :width], counts, background=not objectness
        )
    else:
        losses = seesaw_loss(logits[:, :width], targets.classes, counts, background=not objectness)
    torch.testing.assert_close(found["loss_cls"], losses)
    assert set(found) == ({"loss_cls", "loss_objectness"} if objectness else {"loss_cls"})


def test_what_is_counted():
    targets = several_labels()
    known = targets.labels[targets.classes >= 0]
    every, one = SeesawLoss(num_classes=5), SeesawLoss(num_classes=5, labels="most_specific")
    for loss in (every, one):
        for _ in range(2):
            loss.update(targets)
            loss.unreduced(some_logits(7), targets)
            loss.scores(some_logits(7))
    assert torch.equal(every.class_counts, 2 * (known == 1).sum(dim=0))
    classes = targets.classes[targets.classes >= 0]
    assert torch.equal(one.class_counts, 2 * torch.bincount(classes, minlength=6))
    assert every.class_counts.dtype == torch.int64 and every.class_counts[-1] == 12


def test_counts_go_beyond_what_float32_can_count():
    loss = SeesawLoss(num_classes=5)
    loss.class_counts.fill_(2**24)
    loss.update(single_label())
    assert loss.class_counts[:5].gt(2**24).all() and loss.class_counts.sum() == 6 * 2**24 + 23


def test_checkpoints_keep_the_counts():
    loss, twin = SeesawLoss(num_classes=5), SeesawLoss(num_classes=5)
    loss.update(single_label())
    twin.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert set(loss.state_dict()) == {"class_counts"}
    assert torch.equal(twin.class_counts, loss.class_counts) and loss.class_counts.sum() == 23
    with pytest.raises(RuntimeError, match="class_counts"):
        SeesawLoss(num_classes=4).load_state_dict(loss.state_dict())


def test_a_background_batch_moves_no_class_logit():
    logits, targets = some_logits(7, 8), MultiLabelTargets.from_classes(torch.full((8,), 5), 5)
    found = SeesawLoss(num_classes=5).unreduced(logits, targets)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in found.values()), logits)
    assert not found["loss_cls"].any() and not gradient[:, :5].any() and gradient[:, 5:].all()


@pytest.mark.parametrize("objectness", [True, False])
def test_concurrent_scores(objectness):
    """Of the classes alone, or with background; without rates they are softmax."""
    logits, targets = some_logits(6 + objectness), several_labels()
    rates, options = torch.zeros(5, 5), {"num_classes": 5, "objectness": objectness}
    plain = SeesawLoss(**options)
    torch.testing.assert_close(plain.scores(logits).sum(dim=1), torch.ones(24, dtype=torch.float64))
    loss = ConcurrentSeesawLoss(rates=rates, **options)
    torch.testing.assert_close(loss.scores(logits), plain.scores(logits))
    torch.testing.assert_close(loss.unreduced(logits, targets), plain.unreduced(logits, targets))
    rates[0, 1] = 1.0
    found = ConcurrentSeesawLoss(rates=rates, **options).scores(logits)
    wanted = concurrent_softmax_scores(logits[:, : 5 if objectness else 6], rates.double())[:, :5]
    if objectness:
        wanted = wanted * logits[:, 5:].softmax(dim=1)[:, :1]
    torch.testing.assert_close(found[:, :5], wanted)
    assert (found[:, 0] > plain.scores(logits)[:, 0]).all()
    torch.testing.assert_close(found[:, 1:], plain.scores(logits)[:, 1:])


@pytest.mark.parametrize("kind", [FocalSeesawLoss, ConcurrentFocalSeesawLoss])
def test_focal_objectness(kind):
    """The classes' loss is Seesaw's; that of foreground the focal loss of its probability."""
    logits, targets, plain = some_logits(7), several_labels(), SeesawLoss(num_classes=5)
    rates = {"rates": torch.zeros(5, 5)} if kind is ConcurrentFocalSeesawLoss else {}
    loss = kind(num_classes=5, focal_alpha=0.3, focal_gamma=1.5, **rates)
    found, other = loss.unreduced(logits, targets), plain.unreduced(logits, targets)
    torch.testing.assert_close(found["loss_cls"], other["loss_cls"])
    torch.testing.assert_close(loss.scores(logits), plain.scores(logits))
    share = logits[:, 5:].softmax(dim=1)[:, 0]
    positive, negative = -0.3 * (1 - share) ** 1.5 * share.log(), -0.7 * share**1.5 * (1 - share).log()
    wanted = torch.where(targets.foreground, positive, negative)
    torch.testing.assert_close(found["loss_objectness"], torch.where(targets.known, wanted, 0))


def test_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "ConcurrentFocalSeesawLoss"
    node = cfg.MODEL.CLASSIFICATION_LOSS
    node.SEESAW.P, node.SEESAW.Q, node.SEESAW.EPS, node.SEESAW.LABELS = 0.5, 1.0, 0.1, "most_specific"
    node.FOCAL_SEESAW.ALPHA, node.FOCAL_SEESAW.GAMMA = 0.4, 1.0
    loss = build_classification_loss(cfg, 5)
    assert type(loss) is ConcurrentFocalSeesawLoss
    assert (loss.p, loss.q, loss.eps, loss.labels) == (0.5, 1.0, 0.1, "most_specific")
    assert (loss.focal_alpha, loss.focal_gamma) == (0.4, 1.0)
    node.SEESAW.OBJECTNESS = False
    with pytest.raises(ConfigError, match=r"SEESAW\.OBJECTNESS must be True"):
        build_classification_loss(cfg, 5)
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "SeesawLoss"
    assert not build_classification_loss(cfg, 5).objectness


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p": -0.1}, r"SEESAW\.P is -0\.1"),
        ({"q": float("nan")}, r"SEESAW\.Q is nan"),
        ({"eps": 0.0}, r"SEESAW\.EPS is 0\.0"),
        ({"labels": "some"}, r"SEESAW\.LABELS is 'some'; it must be one of all, most_specific"),
        ({"focal_gamma": -1.0}, r"FOCAL_SEESAW\.ALPHA must be at most 1 and GAMMA at least 0"),
    ],
)
def test_values_outside_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        FocalSeesawLoss(**{"num_classes": 5, **options})


def test_one_class():
    targets = MultiLabelTargets.from_classes(torch.tensor([0, 1, 0]), 1)
    found = SeesawLoss(num_classes=1).unreduced(some_logits(3, rows=3), targets)
    assert not found["loss_cls"].any() and found["loss_objectness"].all()
