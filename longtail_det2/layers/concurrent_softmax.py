r"""Concurrent softmax (Peng et al. 2020), in which a class does not suppress those that it occurs with.

Shape shorthand in this module:

    R: number of rows (regions or images)
    K: number of foreground classes
    C: number of logits, K + 1 with the background as last column, or K without a background
    P: number of pairs of a row and one of its positive classes

With logits z, labels y in {1, 0, -1} and rates r[i, j] = P(j | i), the rate at which an object of class i is
also of class j:

    training  s_i = e^{z_i} / (e^{z_i} + sum_{j != i, y_j = 0} (1 - r_ij) e^{z_j})
              L   = -sum_{i: y_i = 1} log s_i
    test      p_i = e^{z_i} / (e^{z_i} + sum_{j != i} (1 - r_ij) e^{z_j})

So -log s_i is the cross entropy of z_j + log(1 - r_ij) over i and the negatives, and that is how it is
computed. The rates of the background are 0 both ways. Ignored classes (y = -1) are excluded from both
numerator and denominator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import at_least_float32


def concurrent_softmax_loss(logits: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
    """Compute the loss L per row; see the module.

    Args:
        logits: (R, C), any floating type.
        labels: (R, C), 1 positive, 0 negative, -1 ignored; any number of positives.
        rates: (K, K) in [0, 1], which is not checked here; the diagonal is not read.

    Returns:
        (R,), at least float32; 0 where there is no positive. NaN or positive infinity in any of a row's
        logits makes its loss NaN, also where that logit would not count. The host reads P, and about 6 P C
        numbers are needed.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(logits, rates, labels)
    logits = at_least_float32(logits)
    rows, classes = (labels > 0).nonzero(as_tuple=True)
    left_out = (labels[rows] != 0).scatter(1, classes[:, None], False)
    log_weights = _weights(rates, logits, own=1.0).log()[classes]
    of_pairs = (logits[rows] + log_weights).masked_fill(left_out, -math.inf)
    losses = F.cross_entropy(of_pairs, classes, reduction="none")
    return _zero_or_nan(logits).index_add(0, rows, losses)


def concurrent_softmax_scores(logits: Tensor, rates: Tensor) -> Tensor:
    """Compute the scores p per row; arguments as of :func:`concurrent_softmax_loss`.

    One product of (R, C) and (C, C) gives all denominators. With r_ij = 1 the largest logit may have no
    weight, and what is left beside it may be smaller than any number of the type: those denominators are
    summed separately in logarithms.

    Returns:
        (R, C) in [0, 1], at least float32. A row sums to at least 1; with all rates 0 it is the softmax.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(logits, rates)
    logits = at_least_float32(logits)
    with torch.autocast(logits.device.type, enabled=False):
        weights = _weights(rates, logits, own=0.0)
        terms = (logits - logits.detach().amax(dim=1, keepdim=True)).exp()
        total = terms @ weights.T + terms
        smallest = logits.shape[1] * torch.finfo(total.dtype).tiny / torch.finfo(total.dtype).eps
        inexact = total < smallest  # terms that count may have been lost
        scores = terms / total.masked_fill(inexact, 1)
        rows, classes = inexact.nonzero(as_tuple=True)
        log_weights = weights.log()

        def exact(rows: Tensor, classes: Tensor) -> Tensor:
            others = (logits[rows] + log_weights[classes]).logsumexp(dim=1)
            return torch.sigmoid(logits[rows, classes] - others)

        if torch.compiler.is_exporting():  # a recorded graph must handle any number of them
            torch._check(rows.shape[0] > 0)  # only chooses what is recorded; the operators accept none
            return scores.index_put((rows, classes), exact(rows, classes))
        step = max(1, len(logits) // 4)  # bounds memory
        parts = zip(rows.split(step), classes.split(step), strict=True)
        return scores.index_put((rows, classes), torch.cat([exact(*part) for part in parts]))


def multi_label_softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute softmax cross entropy with several labels, -sum_i y_i log softmax(z)_i, per row.

    Unlike :func:`concurrent_softmax_loss` with rates of 0, positives suppress each other: with k labels the
    minimum is at scores of 1 / k each. Ignored classes are left out of the softmax. With one label and no
    ignored class both are cross entropy.

    Returns:
        (R,), at least float32; 0 where there is no positive.

    Raises:
        ValueError: the shapes do not match.
    """
    if logits.ndim != 2 or labels.shape != logits.shape:
        raise ValueError(f"need logits and labels (R, C), got {tuple(logits.shape)}, {tuple(labels.shape)}")
    logits, positive = at_least_float32(logits), labels > 0
    left_out = (labels < 0) & positive.any(dim=1, keepdim=True)  # one class at least stays in
    log_scores = F.log_softmax(logits.masked_fill(left_out, -math.inf), dim=1)
    return _zero_or_nan(logits) - torch.where(positive, log_scores, 0).sum(dim=1)


def _weights(rates: Tensor, logits: Tensor, own: float) -> Tensor:
    """(C, C) of the logits' type, 1 - r; `own` on the diagonal, 1 where the background is one of the two."""
    missing = logits.shape[1] - rates.shape[0]
    padded = F.pad(rates.to(logits.dtype), (0, missing, 0, missing))
    places = torch.arange(padded.shape[0], device=rates.device)  # not eye, which ONNX runtimes lack
    return 1 - padded.masked_fill(places[:, None] == places, 1 - own)


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
