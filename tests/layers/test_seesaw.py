import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longtail_det2.layers import multi_label_seesaw_loss, seesaw_log_factors, seesaw_loss

OWN = ("C20_mean", "C20_extreme", "C20_p0", "C20_q0", "C20_weighted")
SHARED = ("C20_avgN", "C20_p0q0", "C200_avgN")
FLOAT32_EPS = 1.1920929e-07
"""Added to the divisor of the recorded sums."""


@pytest.fixture(params=[*OWN, *SHARED])
def golden(request, golden_dir):
    """A recorded sequence of training steps."""
    folder = golden_dir if request.param in OWN else request.getfixturevalue("shared_dir") / "golden"
    with np.load(folder / f"seesaw/seesaw_{request.param}.npz") as file:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}


def formula(logits, label, counts, p, q, eps):
    """One region, straight from the paper's formula in float64, with powers and loops."""
    scores = logits.detach().softmax(0)
    total = logits[label].exp()
    for other in range(len(logits)):
        if other == label:
            continue
        factor = 1.0
        if max(label, other) < len(counts):
            ratio = max(float(counts[other]), 1.0) / max(float(counts[label]), 1.0)
            factor = min(1.0, ratio**p)
            factor *= max(1.0, float(scores[other] / scores[label].clamp(min=eps)) ** q)
        total = total + factor * logits[other].exp()
    return total.log() - logits[label]


def example(rows=20, classes=6, columns=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=generator, dtype=dtype)
    labels = torch.randint(0, columns, (rows,), generator=generator)
    counts = torch.tensor([0, 1, 7, 40, 900, 2**25 + 1][:classes])
    return logits.requires_grad_(), labels, counts


def one_hot(labels, columns):
    return F.one_hot(labels, columns).to(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recorded_sequences(golden, dtype):
    """Losses and gradients of the released code, step after step with counts that grow."""
    num_classes, exact = int(golden["num_classes"]), dtype == torch.float64
    options = {key: float(golden[key]) for key in ("p", "q", "eps")}
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 2e-6, "atol": 1e-7}
    for step in range(int(golden["num_steps"])):
        logits = golden[f"logits_{step}"].to(dtype).requires_grad_()
        labels, counts = golden[f"labels_{step}"], golden[f"cum_samples_{step}_f64"].long()
        weights = golden.get(f"label_weights_{step}", torch.ones(len(labels))).to(dtype)
        losses = seesaw_loss(logits[:, :num_classes], labels, counts[:-1], **options) * weights
        background = (labels == num_classes).long()
        presence = F.cross_entropy(logits[:, num_classes:], background, reduction="none") * weights
        divisor = golden[f"avg_factor_{step}"].to(dtype)
        if divisor.isnan():  # the mean over rows
            found = losses.sum() / (1 - background).sum().clamp(min=1), presence.mean()
        else:
            found = losses.sum() / (divisor + FLOAT32_EPS), presence.sum() / (divisor + FLOAT32_EPS)
        name = "f64" if exact else "f32"
        for value, key in zip(found, ("classes", "objectness"), strict=True):
            torch.testing.assert_close(value.detach(), golden[f"loss_{key}_{step}_{name}"], **tolerance)
        (gradient,) = torch.autograd.grad(sum(found), logits)
        torch.testing.assert_close(gradient, golden[f"grad_{step}_f64"].to(dtype), **tolerance)


@pytest.mark.parametrize("columns", [6, 7])
def test_the_formula(columns):
    """With a background column, too: there nothing is weighed against it."""
    logits, labels, counts = example(columns=columns)
    for p, q in ((0.8, 2.0), (0.8, 0.0), (0.0, 2.0), (0.3, 1.0)):
        found = seesaw_loss(logits, labels, counts, p, q, background=columns > 6)
        pairs = zip(logits, labels.tolist(), strict=True)
        wanted = [formula(row, label, counts, p, q, 1e-2) for row, label in pairs]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [6, 7])
def test_without_exponents_it_is_cross_entropy(columns):
    logits, labels, counts = example(columns=columns)
    wanted = F.cross_entropy(logits, labels, reduction="none")
    options = {"p": 0, "q": 0, "background": columns > 6}
    torch.testing.assert_close(seesaw_loss(logits, labels, counts, **options), wanted)
    found = multi_label_seesaw_loss(logits, one_hot(labels, columns), counts, **options)
    torch.testing.assert_close(found, wanted)


def test_equal_counts_and_correct_predictions_leave_softmax():
    """S = 1 where no class is rarer and none is more likely than the true one."""
    logits, labels, _ = example()
    with torch.no_grad():
        logits.scatter_(1, labels[:, None], 10.0)
    counts = torch.full((6,), 12)
    assert seesaw_log_factors(logits, labels, counts).eq(0).all()
    torch.testing.assert_close(
        seesaw_loss(logits, labels, counts), F.cross_entropy(logits, labels, reduction="none")
    )


def test_which_factor_does_what():
    logits = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
    counts = torch.tensor([100, 10, 1000])
    label = torch.tensor([0])
    mitigation = seesaw_log_factors(logits, label, counts, q=0).exp()
    torch.testing.assert_close(mitigation, torch.tensor([[1.0, 0.1**0.8, 1.0]], dtype=torch.float64))
    compensation = seesaw_log_factors(logits, label, counts, p=0).exp()
    torch.testing.assert_close(compensation, torch.tensor([[1.0, 1.0, math.e**4]], dtype=torch.float64))
    both = seesaw_log_factors(logits, label, counts).exp()
    torch.testing.assert_close(both, mitigation * compensation)


def test_compensation_stops_at_eps():
    logits = torch.tensor([[-60.0, 0.0]], dtype=torch.float64)
    found = seesaw_log_factors(logits, torch.tensor([0]), torch.tensor([5, 5]), eps=1e-2)
    torch.testing.assert_close(found[0, 1], torch.tensor(2 * math.log(100), dtype=torch.float64))


def test_regions_without_a_class_have_no_loss():
    logits, labels, counts = example()
    labels[3], labels[4] = -1, 6
    losses = seesaw_loss(logits, labels, counts)
    assert losses[3] == losses[4] == 0
    assert seesaw_loss(logits[:, :1], torch.tensor([0, 1] * 10), torch.tensor([3])).eq(0).all()  # K = 1
    losses.sum().backward()
    assert logits.grad is not None and logits.grad[3:5].eq(0).all() and logits.grad[5].ne(0).any()


def test_one_label_in_the_multi_label_form():
    for columns in (6, 7):
        logits, labels, counts = example(columns=columns)
        options = {"background": columns > 6}
        found = multi_label_seesaw_loss(logits, one_hot(labels, columns), counts, **options)
        torch.testing.assert_close(
            found, seesaw_loss(logits, labels, counts, **options), rtol=1e-12, atol=1e-12
        )


def test_several_labels_are_rivals_of_the_negatives_only():
    """Each positive label costs what it costs alone among the classes that are negative."""
    logits, _, counts = example(rows=1)
    labels = torch.tensor([[1, 0, -1, 1, 0, 0]], dtype=torch.int8)
    wanted = torch.zeros((), dtype=torch.float64)
    for label in (0, 3):
        kept = [label, 1, 4, 5]
        wanted = wanted + formula(logits[0, kept], 0, counts[kept], 0.8, 2.0, 1e-2)
    torch.testing.assert_close(multi_label_seesaw_loss(logits, labels, counts)[0], wanted)
    all_positive = torch.ones(1, 6, dtype=torch.int8)
    assert multi_label_seesaw_loss(logits, all_positive, counts).eq(0).all()


def test_the_factors_are_constants_for_the_gradient():
    logits, labels, counts = example(rows=6)
    factors = seesaw_log_factors(logits, labels, counts)
    (found,) = torch.autograd.grad(seesaw_loss(logits, labels, counts).sum(), logits)
    wanted = (logits + factors).softmax(1) - one_hot(labels, 6)
    torch.testing.assert_close(found, wanted.detach())


def test_cuda_form_on_this_device(monkeypatch):
    """What CUDA runs, all rows at once, gives the same where it runs here."""
    logits, labels, counts = example()
    labels[2], labels[5] = -1, 6
    wanted = seesaw_loss(logits, labels, counts)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    torch.testing.assert_close(seesaw_loss(logits, labels, counts), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_nothing_waits_for_the_device():
    logits, labels, counts = example(dtype=torch.float32)
    wanted = seesaw_loss(logits, labels, counts)
    there = [one.detach().cuda() for one in (logits, labels, counts)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = seesaw_loss(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), wanted)


def test_options_and_labels_out_of_range():
    """Labels beyond K are no rows without a loss."""
    logits, labels = torch.zeros(4, 6), torch.tensor([0, 5, 6, -1])
    for function, truth in ((seesaw_loss, labels), (multi_label_seesaw_loss, torch.zeros(4, 6).char())):
        for options in ({"p": -1.0}, {"q": math.nan}, {"eps": 0.0}):
            with pytest.raises(ValueError, match="need p >= 0"):
                function(logits, truth, torch.zeros(6), **options)
    for bad in (7, -2):
        with pytest.raises(ValueError, match="need labels from -1 to 6"):
            seesaw_loss(logits, torch.full((4,), bad), torch.zeros(6))
