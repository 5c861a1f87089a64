"""Seesaw's losses as modules: recorded steps, what is counted, objectness, concurrent scores."""

import numpy as np
import pytest
import torch
from model_factories import multi_label_targets, random_logits, single_label_targets

from longtail_det2.layers import concurrent_softmax_scores, multi_label_seesaw_loss, seesaw_loss
from longtail_det2.modeling.losses import (
    ConcurrentFocalSeesawLoss,
    ConcurrentSeesawLoss,
    FocalSeesawLoss,
    SeesawLoss,
    SoftmaxCrossEntropyLoss,
)
from longtail_det2.structures.multi_label import MultiLabelTargets

OWN = ("C20_mean", "C20_extreme", "C20_p0", "C20_q0", "C20_weighted")
SHARED = ("C20_avgN", "C20_p0q0", "C200_avgN")


def logits_of(width, rows=12):
    return random_logits(width, rows, torch.float64)


@pytest.fixture(params=[*OWN, *SHARED])
def golden(request, golden_dir):
    """Several training steps of the released code."""
    folder = golden_dir if request.param in OWN else request.getfixturevalue("shared_dir") / "golden"
    with np.load(folder / f"seesaw/seesaw_{request.param}.npz") as file:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}


@pytest.mark.parametrize("labels", ["all", "most_specific"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recorded_sequences(golden, labels, dtype):
    """Counts, losses, gradients and scores, step after step."""
    num_classes, kind = int(golden["num_classes"]), "f64" if dtype == torch.float64 else "f32"
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if kind == "f64" else {"rtol": 2e-6, "atol": 1e-7}
    options = {key: float(golden[key]) for key in ("p", "q", "eps")}
    loss = SeesawLoss(num_classes=num_classes, labels=labels, **options)
    for step in range(int(golden["num_steps"])):
        logits = golden[f"logits_{step}"].to(dtype).requires_grad_()
        targets = MultiLabelTargets.from_classes(golden[f"labels_{step}"], num_classes)
        loss.update(targets)
        assert torch.equal(loss.class_counts.double(), golden[f"cum_samples_{step}_f64"])
        weights = golden.get(f"label_weights_{step}", torch.ones(len(logits))).to(dtype)
        found = {key: (value * weights).sum() for key, value in loss.unreduced(logits, targets).items()}
        assert set(found) == {"loss_cls", "loss_objectness"}
        divisor = golden[f"avg_factor_{step}"].to(dtype)
        if divisor.isnan():  # the means over the rows
            found["loss_cls"] = found["loss_cls"] / targets.foreground.sum().clamp(min=1)
            found["loss_objectness"] = found["loss_objectness"] / len(logits)
        else:  # the released code adds the epsilon of float32
            found = {key: value / (divisor + 1.1920929e-07) for key, value in found.items()}
        for key, value in found.items():
            wanted = golden[f"{key.replace('cls', 'classes')}_{step}_{kind}"]
            torch.testing.assert_close(value.detach(), wanted, **tolerance)
        (gradient,) = torch.autograd.grad(sum(found.values()), logits)
        torch.testing.assert_close(gradient, golden[f"grad_{step}_f64"].to(dtype), **tolerance)
        if f"scores_{step}_f64" in golden:
            scores = loss.scores(logits).detach()
            torch.testing.assert_close(scores, golden[f"scores_{step}_f64"].to(dtype), **tolerance)


def test_without_objectness_and_exponents_it_is_the_softmax_loss():
    targets, logits, other = single_label_targets(), logits_of(6), SoftmaxCrossEntropyLoss(num_classes=5)
    loss = SeesawLoss(num_classes=5, p=0, q=0, objectness=False)
    assert loss.num_logits == 6
    torch.testing.assert_close(loss.unreduced(logits, targets), other.unreduced(logits, targets))
    torch.testing.assert_close(loss.background(logits), other.background(logits))
    torch.testing.assert_close(loss.scores(logits), other.scores(logits))
    torch.testing.assert_close(loss.bias(0.1), other.bias(0.1))


@pytest.mark.parametrize("objectness", [True, False])
@pytest.mark.parametrize("labels", ["all", "most_specific"])
def test_the_functions_of_rows(objectness, labels):
    targets, logits = multi_label_targets(), logits_of(6 + objectness)
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
    """Positive labels, or the most specific ones, of known rows; exactly, beyond 2^24 too."""
    targets = multi_label_targets()
    known = targets.labels[targets.known]
    every, one = SeesawLoss(num_classes=5), SeesawLoss(num_classes=5, labels="most_specific")
    for loss in (every, one):
        loss.class_counts.fill_(2**24)
        for _ in range(2):
            loss.update(targets)
            loss.unreduced(logits_of(7), targets)
            loss.scores(logits_of(7))
    assert every.class_counts.dtype == torch.int64 and every.class_counts[-1] > 2**24
    assert torch.equal(every.class_counts - 2**24, 2 * (known == 1).sum(dim=0))
    classes = torch.bincount(targets.classes[targets.known], minlength=6)
    assert torch.equal(one.class_counts - 2**24, 2 * classes)
    assert set(every.state_dict()) == {"class_counts"}


@pytest.mark.parametrize("objectness", [True, False])
def test_concurrent_scores(objectness):
    """Of the classes alone, or with background; without rates they are softmax."""
    logits, targets = logits_of(6 + objectness), multi_label_targets()
    rates, options = torch.zeros(5, 5), {"num_classes": 5, "objectness": objectness}
    plain = SeesawLoss(**options)
    torch.testing.assert_close(plain.scores(logits).sum(dim=1), torch.ones(12, dtype=torch.float64))
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
    logits, targets, plain = logits_of(7), multi_label_targets(), SeesawLoss(num_classes=5)
    rates = {"rates": torch.zeros(5, 5)} if kind is ConcurrentFocalSeesawLoss else {}
    loss = kind(num_classes=5, focal_alpha=0.3, focal_gamma=1.5, **rates)
    found, other = loss.unreduced(logits, targets), plain.unreduced(logits, targets)
    torch.testing.assert_close(found["loss_cls"], other["loss_cls"])
    torch.testing.assert_close(loss.scores(logits), plain.scores(logits))
    share = logits[:, 5:].softmax(dim=1)[:, 0]
    positive, negative = -0.3 * (1 - share) ** 1.5 * share.log(), -0.7 * share**1.5 * (1 - share).log()
    wanted = torch.where(targets.foreground, positive, negative)
    torch.testing.assert_close(found["loss_objectness"], torch.where(targets.known, wanted, 0))
