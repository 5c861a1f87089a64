import math

import pytest
import torch
from torch.nn import functional as F

from longtail_det2.layers import multi_label_seesaw_loss, seesaw_loss


def formula(logits, labels, counts, p, q, eps=1e-2):
    """One region, straight from the paper's formula in float64: each positive label against the negatives."""
    total = 0 * logits.sum()
    rivals = labels.eq(0).nonzero()[:, 0].tolist()
    for label in labels.eq(1).nonzero()[:, 0].tolist():
        scores = logits[[label, *rivals]].detach().softmax(0)
        terms = logits[label].exp()
        for other, score in zip(rivals, scores[1:], strict=True):
            factor = 1.0
            if max(label, other) < len(counts):
                ratio = max(float(counts[other]), 1.0) / max(float(counts[label]), 1.0)
                factor = min(1.0, ratio**p)
                factor *= max(1.0, float(score / scores[0].clamp(min=eps)) ** q)
            terms = terms + factor * logits[other].exp()
        total = total + terms.log() - logits[label]
    return total


def example(rows=20, classes=6, columns=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=generator, dtype=dtype)
    labels = torch.randint(0, columns, (rows,), generator=generator)
    counts = torch.tensor([0, 1, 7, 40, 900, 2**25 + 1][:classes])
    return logits.requires_grad_(), labels, counts


@pytest.mark.parametrize("columns", [6, 7])
@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.8, 0.0), (0.0, 2.0), (0.3, 1.0), (0, 0)])
def test_the_formula(columns, p, q):
    """Values and gradients of one label and of several; nothing is weighed against a background column."""
    logits, classes, counts = example(columns=columns)
    one = F.one_hot(classes, columns).to(torch.int8)
    several = torch.randint(-1, 2, one.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    several[0], several[1] = 1, 0
    options = {"p": p, "q": q, "background": columns > 6}
    for losses, labels in (
        (seesaw_loss(logits, classes, counts, **options), one),
        (multi_label_seesaw_loss(logits, one, counts, **options), one),
        (multi_label_seesaw_loss(logits, several, counts, **options), several),
    ):
        wanted = torch.stack([formula(z, y, counts, p, q) for z, y in zip(logits, labels, strict=True)])
        torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(values.sum(), logits)[0] for values in (losses, wanted))
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_regions_without_a_class_have_no_loss():
    logits, labels, counts = example()
    labels[3], labels[4] = -1, 6
    losses = seesaw_loss(logits, labels, counts)
    assert losses[3] == losses[4] == 0
    assert seesaw_loss(logits[:, :1], torch.tensor([0, 1] * 10), torch.tensor([3])).eq(0).all()  # K = 1
    losses.sum().backward()
    assert logits.grad is not None and logits.grad[3:5].eq(0).all() and logits.grad[5].ne(0).any()


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


@pytest.mark.parametrize("function", [seesaw_loss, multi_label_seesaw_loss])
@pytest.mark.parametrize(
    ("logits", "labels", "counts"),
    [
        ((4, 6), (4,), (4,)),
        ((4, 6), (5,), (6,)),
        ((4,), (4,), (6,)),
        ((4, 6), (4, 1), (6,)),
        ((4, 6), (4,), (5,)),
    ],
)
def test_shapes_that_do_not_fit(function, logits, labels, counts):
    with pytest.raises(ValueError, match="need"):
        function(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), torch.zeros(counts))


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
