r"""The parts of Distribution-Balanced loss (Wu et al., ECCV 2020), for rows with several labels.

Shape shorthand in this module:

    R: number of rows (regions or images)
    K: number of classes

With n_k of N training images having class k, labels y and logits z:

    r_k  = (1 / n_k) / sum_j (y_j / n_j)       rate of drawing the row by class k, over that by all labels
    r'_k = alpha + sigmoid(beta (r_k - mu))    re-balanced weight, of positives and negatives
    b_k  = -log(N / n_k - 1)                   the logit that scores every image n_k / N
    nu_k = -kappa b_k                          class bias of the negative-tolerant regularisation
    q_k  = sigmoid(z_k - nu_k) if y_k else sigmoid(-lambda (z_k - nu_k))
    L_k  = r'_k (1 if y_k else 1 / lambda) (-log q_k)

and L_k balance (1 - q_k)^gamma in the focal form.

The code that the authors released divides nu by lambda as well, and the published numbers were obtained so;
the paper does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import at_least_float32


@torch.no_grad()
def rebalanced_weights(
    positive: Tensor, counts: Tensor, alpha: float = 0.1, beta: float = 10.0, mu: float = 0.2
) -> Tensor:
    """Compute the weights r' that undo what sampling images by class does to their other classes.

    Args:
        positive: (R, K) bool, labels that the row can be drawn by.
        counts: (K,) numbers >= 0 of images of each class; a class without images counts as in one.
        alpha: lower bound of the weights, not negative.
        beta: steepness, not negative.
        mu: rate r in the middle of the range.

    Returns:
        (R, K) in [alpha, 1 + alpha], of the type of `counts` but at least float32; 1 + alpha, the limit of
        r' for rare labels, in rows without a positive.
    """
    rates = at_least_float32(counts).clamp(min=1).reciprocal()
    drawn = (positive * rates).sum(dim=1, keepdim=True)
    weights = torch.sigmoid(beta * (rates / drawn - mu))
    return alpha + torch.where(drawn > 0, weights, 1.0)


@torch.no_grad()
def negative_tolerant_bias(
    counts: Tensor, num_images: Tensor, kappa: float = 0.05, divisor: float = 1.0
) -> Tensor:
    """Compute the class bias nu, which is positive for classes of fewer than half of the images.

    Args:
        counts: (K,) numbers in [0, N]; 0 counts as half an image, N as half an image less.
        num_images: N, scalar.
        kappa: strength, not negative.
        divisor: 1 for the paper's form, lambda for that of the released code.

    Returns:
        (K,), of the type of `counts` but at least float32.
    """
    counts, total = at_least_float32(counts), num_images.clamp(min=1)
    present = counts.clamp(min=0.5).minimum(total - 0.5)
    return kappa / divisor * ((total - present) / present).log()


def distribution_balanced_loss(
    logits: Tensor,
    positive: Tensor | None,
    weights: Tensor | float = 1.0,
    class_bias: Tensor | float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    balance: float = 1.0,
) -> Tensor:
    """Compute the loss L per entry; see the module. With the defaults it is binary cross entropy.

    Nothing waits for the device, and the gradient is finite for all finite logits and gamma.

    Args:
        logits: (R, K), any floating type.
        positive: (R, K) bool; None: every entry is negative.
        weights: r', broadcast to the logits.
        class_bias: nu, broadcast to the logits.
        negative_scale: lambda, positive: the logits of negatives are multiplied, their losses divided by it.
        gamma: exponent of the focal form, not negative; 0: without it.
        balance: factor of the focal form; not used where gamma is 0.

    Returns:
        (R, K), at least float32.
    """
    shifted = at_least_float32(logits) - class_bias
    wrong = negative_scale * shifted  # the logit of 1 - q
    if positive is not None:
        wrong = torch.where(positive, -shifted, wrong)
    losses = -F.logsigmoid(-wrong)  # not softplus, which cuts off e^-20
    if gamma > 0:
        losses = balance * losses * torch.exp(gamma * F.logsigmoid(wrong))
    negatives = losses / negative_scale
    return weights * (negatives if positive is None else torch.where(positive, losses, negatives))
