r"""Seesaw loss (Wang et al. 2021): softmax in which frequent classes suppress rarer ones less.

Shape shorthand in this module:

    R: number of rows (regions or images)
    K: number of foreground classes
    C: number of logits: K, or K + 1 with the background as last column
    P: number of pairs of a row and one of its positive classes

With logits z, the row's class i and the number N_j of rows of class j so far in training:

    L    = -log( e^{z_i} / (e^{z_i} + sum_{j != i} S_ij e^{z_j}) ),    S_ij = M_ij C_ij
    M_ij = min(1, (max(N_j, 1) / max(N_i, 1))^p)       mitigation: rarer classes are suppressed less
    C_ij = max(1, (s_j / max(s_i, eps))^q)             compensation: but not those that are mistaken for i

where s is the softmax of z and S a constant for the gradient. So L is the cross entropy of z_j + log S_ij,
and that is how it is computed: no power, no (K, K) matrix. That counts are 1 at least and that s_i is bounded
by eps is known from the code that the authors released.

With a background column the background is suppressed by every class, and suppresses it, as in plain softmax
(S = 1 both ways): its count says nothing of how rare it is in the world. The paper has no such form; its
background has a separate classifier.

**Several labels.** A row with the positive classes Y, whose ignored classes are left out, has

    L = sum_{i in Y} -log( e^{z_i} / (e^{z_i} + sum_{j: y_j = 0} S_ij e^{z_j}) )

with s of C_ij the softmax over i and the classes with y_j = 0: positives neither suppress nor relieve each
other. With one label and nothing ignored it is the published loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import at_least_float32


def seesaw_loss(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    background: bool = False,
) -> Tensor:
    """Compute the loss L per row; see the module.

    Args:
        logits: (R, C), any floating type.
        labels: (R,) integers, class of each row. Rows of -1 (ignored), and of K (background) if that has no
            column, have loss 0.
        counts: (K,) numbers >= 0 of rows of each class.
        p: strength of the mitigation, not negative; 0 turns it off.
        q: strength of the compensation, not negative; 0 turns it off.
        eps: lower bound of s_i in the compensation, in (0, 1].
        background: the last column of `logits` is the background's.

    Returns:
        (R,), at least float32. Nothing waits for the device.

    Raises:
        ValueError: the shapes do not match, an option is out of range, or, on a CPU, so is a label.
    """
    _check(logits, counts, background, p, q, eps)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"need labels (R,) for {len(logits)} rows, got {tuple(labels.shape)}")
    logits = at_least_float32(logits)
    if len(labels) and not labels.is_cuda and (labels.max() > len(counts) or labels.min() < -1):
        raise ValueError(f"need labels from -1 to {len(counts)}, got {labels.min()} to {labels.max()}")
    counted = (labels >= 0) & (labels < logits.shape[1])
    losses = _losses(logits, torch.where(counted, labels, 0), counts, p, q, eps)
    return torch.where(counted, losses, 0)


def multi_label_seesaw_loss(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    background: bool = False,
) -> Tensor:
    """Compute the loss L of rows with several labels; see the module.

    The arguments are those of :func:`seesaw_loss` but for `labels`, (R, C), 1 positive, 0 negative, -1
    ignored; any number of positives.

    Returns:
        (R,), at least float32; 0 where there is no positive. The host reads P, and about 5 P C numbers are
        needed.

    Raises:
        ValueError: the shapes do not match, or an option is out of range.
    """
    _check(logits, counts, background, p, q, eps)
    if labels.shape != logits.shape:
        raise ValueError(f"need labels like the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}")
    logits = at_least_float32(logits)
    rows, classes = (labels > 0).nonzero(as_tuple=True)
    left_out = (labels[rows] != 0).scatter(1, classes[:, None], False)
    of_pairs = logits[rows].masked_fill(left_out, -math.inf)
    losses = _losses(of_pairs, classes, counts, p, q, eps)
    return logits.new_zeros(len(logits)).index_add(0, rows, losses)


@torch.no_grad()
def seesaw_log_factors(
    logits: Tensor, labels: Tensor, counts: Tensor, p: float = 0.8, q: float = 2.0, eps: float = 1e-2
) -> Tensor:
    """Compute log S_ij per row, i being its class; arguments as of :func:`seesaw_loss`, labels in [0, C).

    Returns:
        (R, C), without gradient; 0 at each row's own class, in the background's column and for background
        rows.
    """
    num_classes = len(counts)
    classes = labels.clamp(max=num_classes - 1)
    factors = torch.zeros_like(logits)
    inner = factors[:, :num_classes]
    if p > 0:
        log_counts = counts.clamp(min=1).to(logits.dtype).log()
        torch.sub(log_counts, log_counts[classes][:, None], out=inner).clamp_(max=0).mul_(p)
    if q > 0:
        log_scores = F.log_softmax(logits.detach(), dim=1)
        own = log_scores.gather(1, classes[:, None]).clamp_(min=math.log(eps))
        inner += (log_scores[:, :num_classes] - own).clamp_(min=0).mul_(q)
    return factors.masked_fill_((labels == num_classes)[:, None], 0)


def _losses(logits: Tensor, labels: Tensor, counts: Tensor, p: float, q: float, eps: float) -> Tensor:
    """(R,) of rows that all have a class in [0, C)."""
    factors = seesaw_log_factors(logits, labels, counts, p, q, eps)
    return F.cross_entropy(logits + factors, labels, reduction="none")


def _check(logits: Tensor, counts: Tensor, background: bool, p: float, q: float, eps: float) -> None:
    if logits.ndim != 2 or counts.ndim != 1 or logits.shape[1] != len(counts) + background:
        raise ValueError(
            "need logits (R, K) or, with a background, (R, K + 1), and counts (K,), got "
            f"{tuple(logits.shape)} and {tuple(counts.shape)}, background {background}"
        )
    if not (0 <= p < math.inf and 0 <= q < math.inf and 0 < eps <= 1):
        raise ValueError(f"need p >= 0, q >= 0 and eps in (0, 1], got {p}, {q} and {eps}")
