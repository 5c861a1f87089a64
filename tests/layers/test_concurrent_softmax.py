import math

import numpy as np
import pytest
import torch

from longtail_det2.layers import concurrent_softmax_loss, concurrent_softmax_scores, multi_label_softmax_loss

CASES = ("small_bg", "small_nobg", "medium_bg")
SCALES = (1.0, 1e2, 1e4)


@pytest.fixture(params=CASES)
def golden(request, golden_dir):
    with np.load(golden_dir / f"concurrent/{request.param}.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


def example(rows=24, num_classes=7, dtype=torch.float64, scale=1.0, seed=0):
    """Random (logits, labels, rates): one label to all, some ignored, background rows, rates of exactly 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, num_classes + 1, generator=generator, dtype=dtype)
    share = torch.rand(rows, 1, generator=generator)
    labels = (torch.rand(rows, num_classes + 1, generator=generator) < share).to(torch.int8)
    labels[torch.rand(labels.shape, generator=generator) < 0.15] = -1
    labels[:, -1] = 0
    labels[0, :-1] = 1
    labels[-rows // 3 :] = torch.tensor([0] * num_classes + [1], dtype=torch.int8)
    rates = torch.rand(num_classes, num_classes, generator=generator, dtype=dtype)
    rates[torch.rand(rates.shape, generator=generator) < 0.4] = 1.0
    rates[torch.rand(rates.shape, generator=generator) < 0.2] = 0.0
    return logits.requires_grad_(), labels, rates


def log_denominators(logits, suppressing, rates):
    """(R, C) straight from the formula, by (R, C, C) terms in the space of logarithms."""
    size = logits.shape[1]
    weights = torch.ones(size, size, dtype=logits.dtype)
    weights[: len(rates), : len(rates)] -= rates
    terms = torch.where(suppressing[:, None, :], weights.log() + logits[:, None, :], -torch.inf)
    own = torch.eye(size, dtype=torch.bool)
    return torch.where(own, logits[:, None, :], terms).logsumexp(dim=2)


def plain_loss(logits, labels, rates):
    found = log_denominators(logits, labels == 0, rates) - logits
    return torch.where(labels == 1, found, 0).sum(dim=1)


def plain_scores(logits, rates):
    return (logits - log_denominators(logits, torch.ones_like(logits, dtype=torch.bool), rates)).exp()


def loss_and_gradient(function, logits, *args):
    weights = torch.arange(1, len(logits) + 1, dtype=logits.dtype)  # each region's gradient has its own
    loss = function(logits, *args)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
    return loss.detach(), gradient


def close(one, other, atol=1e-10):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=atol)


def test_golden_values(golden):
    logits = golden["logits"].requires_grad_()
    for loss, prefix in (
        (concurrent_softmax_loss(logits, golden["labels"], golden["r"]), ""),
        (multi_label_softmax_loss(logits, golden["labels"]), "softmax_"),
    ):
        close(loss.detach(), golden[f"{prefix}loss"])
        close(torch.autograd.grad(loss.sum(), logits)[0], golden[f"{prefix}grad"])
    close(concurrent_softmax_scores(logits.detach(), golden["r"]), golden["test_prob"])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("num_classes", [1, 7])
def test_the_formula(scale, num_classes):
    """With several labels in a row, ignored ones and none; the diagonal of the rates means nothing."""
    for seed in range(5):
        logits, labels, rates = example(num_classes=num_classes, scale=scale, seed=seed)
        found, wanted = (
            loss_and_gradient(one, logits, labels, rates) for one in (concurrent_softmax_loss, plain_loss)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-10)
        close(concurrent_softmax_scores(logits, rates), plain_scores(logits, rates))
        shares = logits.masked_fill(labels == -1, -torch.inf).log_softmax(dim=1)
        close(multi_label_softmax_loss(logits, labels), -torch.where(labels == 1, shares, 0).sum(dim=1))


@pytest.mark.parametrize("scale", SCALES)
def test_float32_is_right_where_the_largest_logit_has_no_weight(scale):
    """Relative to the largest term, what has a weight is 0 in float32, and a quotient of it 0 / 0 or 1."""
    logits, labels, rates = example(rows=60, dtype=torch.float32, scale=scale)
    rates[:, 0] = 1.0
    logits = logits.detach()
    logits[:, 0] = 3 * scale + 300
    logits.requires_grad_()
    labels[:, 0] = 0
    exact = logits.detach().double().requires_grad_(), labels, rates.double()
    loss, gradient = loss_and_gradient(concurrent_softmax_loss, logits, labels, rates)
    wanted_loss, wanted_gradient = loss_and_gradient(plain_loss, *exact)
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-3)
    scores = concurrent_softmax_scores(logits, rates)
    torch.testing.assert_close(scores.double(), plain_scores(exact[0], exact[2]), rtol=1e-4, atol=1e-6)
    assert (scores[:, 1:-1] > 0.01).any()  # these are the scores that need care


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_logits_never_give_nan(dtype):
    """Two positives, one rival of rate 1, and a gap beyond what the type's exponents span."""
    labels = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    for gap in (80.0, 500.0, 1e4, 1e30):
        logits = torch.zeros(2, 6, dtype=dtype)
        logits[:, 0] = gap
        logits.requires_grad_()
        loss, gradient = loss_and_gradient(concurrent_softmax_loss, logits, labels, torch.ones(5, 5))
        torch.testing.assert_close(loss, torch.tensor([2.0, 1.0], dtype=dtype) * math.log(2))
        assert gradient.isfinite().all() and gradient[:, 0].eq(0).all()
        scores = concurrent_softmax_scores(logits, torch.ones(5, 5))
        torch.testing.assert_close(scores[:, 1:5], torch.full((2, 4), 0.5, dtype=dtype))
        assert torch.autograd.grad(scores.sum(), logits)[0].isfinite().all()


def test_gradient_of_scores_that_are_summed_one_by_one():
    logits, _, rates = example(rows=4)
    rates[:, 0] = 1.0
    logits = torch.cat([torch.full((4, 1), 900.0), logits.detach()[:, 1:]], dim=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: concurrent_softmax_scores(z, rates), logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_show_in_their_region(value):
    """Also in a class that the region's loss does not depend on."""
    logits, labels, rates = example()
    labels[3] = torch.tensor([1, -1, 0, 0, 0, 0, 0, 0])
    rates[0, 2] = 1.0
    for column in (1, 2):
        broken = logits.detach().clone()
        broken[3, column] = value
        for loss in (
            concurrent_softmax_loss(broken, labels, rates),
            multi_label_softmax_loss(broken, labels),
        ):
            assert loss.isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    ("logits", "labels", "rates"),
    [((4,), (4,), (3, 3)), ((2, 4), (2, 3), (3, 3)), ((2, 4), (2, 4), (2, 2)), ((2, 4), (2, 4), (3, 4))],
)
def test_shapes_that_do_not_fit(logits, labels, rates):
    with pytest.raises(ValueError, match="need"):
        concurrent_softmax_loss(torch.zeros(logits), torch.zeros(labels), torch.zeros(rates))


def test_what_is_recorded_as_onnx_gives_the_same_scores(monkeypatch):
    logits, _, rates = example()
    rates[:, 0] = 1.0
    logits = torch.cat([torch.full((24, 1), 900.0), logits.detach()[:, 1:]], dim=1)
    wanted = concurrent_softmax_scores(logits, rates)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    close(concurrent_softmax_scores(logits, rates), wanted)
