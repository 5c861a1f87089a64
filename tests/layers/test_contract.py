"""What all row-wise functions share: rows without a label, one class, huge logits, types, wrong shapes."""

import pytest
import torch
from torch.nn import functional as F

from longtail_det2.layers import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_seesaw_loss,
    multi_label_softmax_loss,
    seesaw_loss,
)


def rates(labels):
    values = torch.rand(labels.shape[1] - 1, labels.shape[1] - 1, generator=torch.Generator().manual_seed(1))
    values[values < 0.3] = 1.0
    return values


def counts(labels):
    return torch.tensor([0, 1, 7, 40, 900, 2**25 + 1])[: labels.shape[1] - 1]


def classes(labels):
    """The first label of each row; -1 without one."""
    return torch.where(labels.eq(1).any(dim=1), labels.eq(1).int().argmax(dim=1), -1)


LOSSES = {
    "concurrent softmax": lambda z, y: concurrent_softmax_loss(z, y, rates(y)),
    "softmax": multi_label_softmax_loss,
    "seesaw": lambda z, y, **more: seesaw_loss(z, classes(y), counts(y), background=True, **more),
    "multi-label seesaw": lambda z, y, **more: multi_label_seesaw_loss(
        z, y, counts(y), background=True, **more
    ),
}
FUNCTIONS = {**LOSSES, "scores": lambda z, y: concurrent_softmax_scores(z, rates(y))}


def example(rows=12, num_classes=6, dtype=torch.float64, scale=1.0):
    """Logits, and labels with several, ignored and no labels in a row, and background rows."""
    generator = torch.Generator().manual_seed(4)
    logits = scale * torch.randn(rows, num_classes + 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    labels[:, -1] = 0
    labels[::4] = F.one_hot(torch.tensor(num_classes))
    labels[1::4] = 0
    return logits.to(dtype).requires_grad_(), labels


def value_and_gradient(function, logits, labels):
    value = function(logits, labels)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("num_classes", [1, 6])
def test_gradcheck(name, num_classes):
    logits, labels = example(num_classes=num_classes)
    constant = {"q": 0.0} if "seesaw" in name else {}  # otherwise the factors change, but have no gradient
    assert torch.autograd.gradcheck(lambda z: FUNCTIONS[name](z, labels, **constant), logits)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_stay_and_no_rows_are_allowed(name):
    logits, labels = example()
    before = logits.detach().clone(), labels.clone()
    value_and_gradient(FUNCTIONS[name], logits, labels)
    assert torch.equal(logits, before[0]) and torch.equal(labels, before[1])
    value, gradient = value_and_gradient(FUNCTIONS[name], *example(rows=0))
    assert len(value) == 0 and gradient.shape == (0, 7)


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_rows_without_a_label_cost_nothing(function):
    logits, labels = example()
    loss, gradient = value_and_gradient(function, logits, labels)
    labelled = (labels == 1).any(dim=1)
    assert torch.equal(loss > 0, labelled) and torch.equal(gradient.any(dim=1), labelled)
    for nothing in (torch.zeros_like(labels), torch.full_like(labels, -1)):
        loss, gradient = value_and_gradient(function, logits, nothing)
        assert not loss.any() and not gradient.any()


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_one_class_and_background_are_cross_entropy(function):
    logits, _ = example(num_classes=1)
    truth = torch.arange(12) % 2
    torch.testing.assert_close(
        function(logits, F.one_hot(truth, 2)), F.cross_entropy(logits, truth, reduction="none")
    )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_huge_logits_in_float32_give_what_float64_gives(name, scale):
    logits, labels = example(dtype=torch.float32, scale=scale)
    exact = logits.detach().double().requires_grad_()
    found, wanted = (value_and_gradient(FUNCTIONS[name], one, labels) for one in (logits, exact))
    torch.testing.assert_close([one.double() for one in found], list(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_evaluated_in_float32(name, dtype):
    function, (logits, labels) = FUNCTIONS[name], example(dtype=dtype, scale=100.0)
    value, gradient = value_and_gradient(function, logits, labels)
    assert gradient.dtype == dtype and gradient.isfinite().all()
    wanted = function(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(logits, labels)
    for found in (value, inside):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


WRONG = [  # function, and shapes of logits, labels and statistics
    (concurrent_softmax_loss, (4,), (4,), (3, 3)),
    (concurrent_softmax_loss, (2, 4), (2, 3), (3, 3)),
    (concurrent_softmax_loss, (2, 4), (2, 4), (2, 2)),
    (concurrent_softmax_loss, (2, 4), (2, 4), (3, 4)),
    *((one, (4, 6), (4,), (4,)) for one in (seesaw_loss, multi_label_seesaw_loss)),
    *((one, (4, 6), (5,), (6,)) for one in (seesaw_loss, multi_label_seesaw_loss)),
    *((one, (4,), (4,), (6,)) for one in (seesaw_loss, multi_label_seesaw_loss)),
    *((one, (4, 6), (4, 1), (6,)) for one in (seesaw_loss, multi_label_seesaw_loss)),
    (seesaw_loss, (4, 6), (4,), (5,)),  # counts of K - 1 classes are no background
    (multi_label_seesaw_loss, (4, 6), (4, 6), (5,)),
]


@pytest.mark.parametrize("function, logits, labels, statistics", WRONG)
def test_shapes_that_do_not_fit(function, logits, labels, statistics):
    with pytest.raises(ValueError, match="need"):
        function(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), torch.zeros(statistics))
