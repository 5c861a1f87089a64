r"""Concurrent softmax (Peng et al. 2020), in which a class does not suppress those that it occurs with.

Shape shorthand in this module:

    R: number of regions
    K: number of foreground classes
    C: number of logits, K + 1 with the background as last column, or K without a background
    P: number of pairs of a region and one of its positive foreground classes

With logits z, truth y in {1, 0, -1} and rates r[i, j] = P(j | i), the rate at which an object of class i is
also of class j:

    training  s_i = e^{z_i} / (e^{z_i} + sum_{j != i, y_j = 0} (1 - r_ij) e^{z_j})
              L   = -sum_{i: y_i = 1} log s_i
    test      p_i = e^{z_i} / (e^{z_i} + sum_{j != i} (1 - r_ij) e^{z_j})

so that dL/dz_i = s_i - 1 for a positive class i, and sum over positive a of (1 - r_ai) e^{z_i} / D_a for a
negative one, with D_a the denominator of s_a. The background concurs with nothing: its rates are 0 both ways.
An ignored class (y = -1) stays out of all sums: whether the region bears it is unknown, so it is no positive,
and it suppresses no positive either, for it may be one.

Everything is in the space of logarithms, relative to the largest term of a sum *that has a weight*: with
r_ij = 1 the largest logit may have none, and what is left may be smaller than any number of the type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .elementwise import at_least_float32

_ROWS = 512
"""Regions worked on at once on a CPU; their matrices fit into its cache."""


def concurrent_softmax_loss(logits: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
    """The loss L of each region; see the module.

    The gradient is worked out along with the loss, for the positive classes only, and kept instead of what
    led to it; both together need less than 4 R C numbers.

    On CUDA, nothing waits for the device, and K^2 numbers more are needed. There all denominators come from a
    product of matrices, and those that are smaller than the region's largest term by a factor of about 1e29
    (float32) from sums of their own: of one pair a region at most, on average over a quarter of the regions.
    If there are more, the loss is NaN.

    Args:
        logits: (R, C), any floating type.
        labels: (R, C), 1 positive, 0 negative, -1 ignored; any number of positives.
        rates: (K, K) in [0, 1], which is not checked here; the diagonal is not read.

    Returns:
        (R,), at least float32. A region without positives has 0. NaN or positive infinity in any of a
        region's logits makes its loss NaN, also where that logit would not count.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(logits, rates, labels)
    logits = at_least_float32(logits)
    with torch.autocast(logits.device.type, enabled=False):
        wants_gradient = logits.requires_grad and torch.is_grad_enabled()
        truth, rates = labels.to(torch.int8), rates.to(logits.dtype)
        loss: Any = _ConcurrentSoftmaxLoss.apply(logits, truth, rates, wants_gradient)
        return loss


def concurrent_softmax_scores(logits: Tensor, rates: Tensor) -> Tensor:
    """The scores p of each region; see the module.

    One product of (R, C) and (C, C) gives all denominators. Those that it cannot give, because the terms with
    a weight are too small beside the largest term, are summed one by one.

    Args:
        logits: (R, C), any floating type.
        rates: (K, K) in [0, 1], which is not checked here; the diagonal is not read.

    Returns:
        (R, C) in [0, 1], at least float32. A row sums to at least 1; with all rates 0 it is the softmax.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(logits, rates)
    logits = at_least_float32(logits)
    with torch.autocast(logits.device.type, enabled=False):
        rates = rates.to(logits.dtype)
        terms = (logits - logits.detach().amax(dim=1, keepdim=True)).exp_()
        total = (terms @ _weights(rates, logits).T).add_(terms)
        inexact = _too_small(total, logits.shape[1])  # never the background: it has its share of any term
        scores = terms / total.masked_fill_(inexact, 1)
        rows, classes = inexact.nonzero(as_tuple=True)
        if torch.jit.is_tracing():  # a recorded graph must do it whenever it is needed, with any number
            return scores.index_put((rows, classes), _exact_scores(logits, rates, rows, classes))
        if len(rows) == 0:
            return scores
        step = max(1, len(logits) // 4)
        parts = zip(rows.split(step), classes.split(step), strict=True)
        exact = [_exact_scores(logits, rates, some, of_class) for some, of_class in parts]
        return scores.index_put((rows, classes), torch.cat(exact))


def multi_label_softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy with several labels, -sum_i y_i log softmax(z)_i, of each region.

    Unlike :func:`concurrent_softmax_loss` with rates of 0, positives suppress each other: with k labels the
    least loss is at scores of 1 / k each. With one label and no ignored class both are cross entropy.

    Args:
        logits: (R, C), any floating type.
        labels: (R, C), 1 positive, 0 negative, -1 ignored: left out of the softmax.

    Returns:
        (R,), at least float32; 0 where there is no positive.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape:
        raise ValueError(f"need logits and labels (R, C), got {tuple(logits.shape)}, {tuple(labels.shape)}")
    logits, labels = at_least_float32(logits), labels.to(torch.int8)
    positive = _positive(labels)
    left_out = labels.clamp(max=0).bool() & positive.any(dim=1, keepdim=True)  # one class at least stays in
    log_scores = F.log_softmax(logits.masked_fill(left_out, -math.inf), dim=1)
    return _zero_or_nan(logits) - torch.where(positive, log_scores, 0).sum(dim=1)


class _ConcurrentSoftmaxLoss(torch.autograd.Function):
    """The loss with its gradient; what is saved is the gradient of each region's own loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rates: Tensor, wants_gradient: bool) -> Tensor:
        loss = _zero_or_nan(logits)
        grad = torch.empty_like(logits) if wants_gradient else None
        work = _matrix_worker(logits, rates) if logits.is_cuda else _pairs_worker(logits, rates)
        step = _rows_at_once(labels)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            work(logits[part], labels[part], loss[part], None if grad is None else grad[part])
        if grad is not None:
            ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return outputs[0][:, None] * grad, None, None, None


_Worker = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
"""Adds the losses of regions, given their logits and labels, to the third tensor; sets their gradient."""


def _rows_at_once(labels: Tensor) -> int:
    """Regions whose intermediate results, a few matrices each, stay within the bound on memory together."""
    few = not labels.is_cuda and int(_positive(labels).count_nonzero()) <= 4 * len(labels)
    rows = len(labels) if few else -(-len(labels) // 4)
    return max(1, rows if labels.is_cuda else min(rows, _ROWS))


def _positive(labels: Tensor) -> Tensor:
    return labels.clamp(min=0).bool()  # many times faster than a comparison of int8


def _pairs_worker(logits: Tensor, rates: Tensor) -> _Worker:
    """Works out one pair after the other; the number of pairs is read by the host."""
    num_classes = len(rates)
    table = rates.neg().log1p_() if 2 * num_classes <= len(logits) else None  # else it needs too much

    def work(logits: Tensor, labels: Tensor, loss: Tensor, grad: Tensor | None) -> None:
        positive, negatives = _positive(labels), logits.masked_fill(labels.bool(), -math.inf)
        if logits.shape[1] > num_classes:
            _background(logits[:, -1], negatives, positive[:, -1], loss, grad)
        elif grad is not None:
            grad.zero_()
        rows, classes = positive[:, :num_classes].nonzero(as_tuple=True)
        step = max(1, len(logits) // 2)
        for some, of_class in zip(rows.split(step), classes.split(step), strict=True) if len(rows) else ():
            log_weights = _log_weights(rates, of_class) if table is None else table.index_select(0, of_class)
            terms, shares = _pair_terms(logits, negatives, log_weights, some, of_class)
            loss.index_add_(0, some, terms)
            if grad is not None:
                grad.index_add_(0, some, shares)

    return work


def _background(own: Tensor, negatives: Tensor, chosen: Tensor, loss: Tensor, grad: Tensor | None) -> None:
    """Adds the background's part of the regions where it is `chosen` to `loss`, and sets `grad` to it."""
    top = torch.maximum(negatives.amax(dim=1), own)
    shares = torch.sub(negatives, top[:, None], out=grad).exp_()
    share = (own - top).exp_()
    total = shares.sum(dim=1).add_(share)
    loss += torch.where(chosen, top - own + total.log(), 0)
    if grad is not None:
        shares.mul_((chosen / total)[:, None])
        shares[:, -1] += torch.where(chosen, share / total - 1, 0)


def _pair_terms(
    logits: Tensor, negatives: Tensor, log_weights: Tensor, rows: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """-log s of P pairs, (P,), and its gradient by the region's logits, (P, C)."""
    shares, own = negatives.index_select(0, rows), logits[rows, classes]
    shares[:, : log_weights.shape[1]] += log_weights
    top = torch.maximum(shares.amax(dim=1), own)
    shares.sub_(top[:, None]).exp_()
    share = (own - top).exp_()
    total = shares.sum(dim=1).add_(share)
    shares.div_(total[:, None]).scatter_(1, classes[:, None], (share / total - 1)[:, None])
    return top - own + total.log(), shares


def _matrix_worker(logits: Tensor, rates: Tensor) -> _Worker:
    """Works out all classes at once, in tensors whose sizes do not depend on the labels.

    With logits z relative to the region's largest negative one, S = sum_j (1 - r_ij) e^{z_j} over the
    negatives and log D = logaddexp(z, log S). Pairs whose D is too small for that are worked out by
    :func:`_pair_terms`, in as many places as there are regions.
    """
    weights = _weights(rates, logits)

    def work(logits: Tensor, labels: Tensor, loss: Tensor, grad: Tensor | None) -> None:
        positive, marked = _positive(labels), labels.bool()
        negatives = logits.masked_fill(marked, -math.inf)
        top = negatives.amax(dim=1, keepdim=True)
        top.masked_fill_(top == -math.inf, 0)
        relative, shares = logits - top, (negatives - top).exp_()
        log_total = (shares @ weights.T).log_()
        log_total = torch.logaddexp(log_total, relative, out=log_total)
        # Without negatives D = e^z, and exact.
        rest = _too_small(log_total.exp(), logits.shape[1]) & positive & ~marked.all(dim=1, keepdim=True)
        positive &= ~rest
        loss += torch.where(positive, log_total - relative, 0).sum(dim=1)
        if grad is not None:
            inverse = torch.where(positive, (-log_total).exp_(), 0)
            torch.mul(shares, inverse @ weights, out=grad)
            grad += torch.where(positive, torch.expm1(relative - log_total), 0)
        loss += torch.where(rest.sum() > len(rest), math.nan, 0)
        rows, classes = torch.nonzero_static(rest, size=len(logits)).unbind(dim=1)
        filled = rows >= 0
        rows, classes = rows.clamp(min=0), classes.clamp(min=0, max=len(rates) - 1)
        terms, gradients = _pair_terms(logits, negatives, _log_weights(rates, classes), rows, classes)
        loss.index_add_(0, rows, torch.where(filled, terms, 0))
        if grad is not None:
            grad.index_add_(0, rows, torch.where(filled[:, None], gradients, 0))

    return work


def _too_small(total: Tensor, count: int) -> Tensor:
    """Whether a sum of `count` terms, relative to the largest, may have lost some that count below `tiny`."""
    kind = torch.finfo(total.dtype)
    return total < count * kind.tiny / kind.eps


def _exact_scores(logits: Tensor, rates: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """(P,) scores of pairs, each by a sum of its own: sigmoid(z_i - log of the sum over the others)."""
    log_weights = F.pad(_log_weights(rates, classes), (0, logits.shape[1] - len(rates)))
    others = (logits[rows] + log_weights).scatter(1, classes[:, None], -math.inf)
    return torch.sigmoid(logits[rows, classes] - others.logsumexp(dim=1))


def _log_weights(rates: Tensor, classes: Tensor) -> Tensor:
    return rates.index_select(0, classes).neg_().log1p_()


def _weights(rates: Tensor, logits: Tensor) -> Tensor:
    """(C, C), 1 - r; 1 where the background is one of the two, 0 on the diagonal."""
    size = logits.shape[1]
    places = torch.arange(size, device=rates.device)
    padded = F.pad(rates, (0, size - len(rates)) * 2)
    return padded.masked_fill_(places[:, None] == places, 1).neg_().add_(1)


def _zero_or_nan(logits: Tensor) -> Tensor:
    """(R,) 0, or NaN where a logit is NaN or positive infinity: a mask must not hide those."""
    return logits.detach().amax(dim=1) * 0


def _check_shapes(logits: Tensor, rates: Tensor, labels: Tensor | None = None) -> None:
    size = logits.shape[-1]
    fits = logits.ndim == 2 and rates.shape in ((size, size), (size - 1, size - 1))
    if not fits or (labels is not None and labels.shape != logits.shape):
        truth = "" if labels is None else f", labels {tuple(labels.shape)}"
        raise ValueError(
            "need logits and labels (R, K + 1) and rates (K, K), got logits "
            f"{tuple(logits.shape)}{truth} and rates {tuple(rates.shape)}"
        )
