"""Softmax cross entropy over the classes and background, the baseline of every published method."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.structures.multi_label import MultiLabelTargets

from .base import ClassificationLoss, class_priors
from .build import CLASSIFICATION_LOSS_REGISTRY


@CLASSIFICATION_LOSS_REGISTRY.register()
class SoftmaxCrossEntropyLoss(ClassificationLoss):
    """Cross entropy of the most specific label of each row; all other classes are negatives.

    ``loss_cls`` = -log softmax(z_r)[c_r] with c_r in [0, K] the row's class; 0 for c_r = -1.
    """

    @configurable
    def __init__(self, *, num_classes: int) -> None:
        """Make the loss of K = `num_classes` classes; L = K + 1."""
        super().__init__(num_classes, num_classes + 1)

    def scores(self, logits: Tensor) -> Tensor:
        """Softmax over the K + 1 logits."""
        return F.softmax(self.checked(logits), dim=1)

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls``; see the class."""
        logits = self.checked(logits, targets)
        return {"loss_cls": F.cross_entropy(logits, targets.classes, ignore_index=-1, reduction="none")}

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_cls`` of rows that are all background."""
        losses: Tensor = _BackgroundCrossEntropy.apply(self.checked(logits))  # pyright: ignore
        return {"loss_cls": losses}

    def bias(self, prior: float | Tensor | None = None) -> Tensor | None:
        """Log-probabilities of the prior, relative to the most frequent class; None leaves the layer's."""
        if prior is None:
            return None
        priors = class_priors(prior, self.num_classes, shared=True)
        bias = torch.cat([priors, 1 - priors.sum()[None]]).log()
        return (bias - bias[:-1].max()).float()


class _BackgroundCrossEntropy(torch.autograd.Function):
    """Cross entropy (R,) of the last class, whose only matrix beside the logits (R, L) is their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        losses = -F.log_softmax(logits, dim=1)[:, -1]
        ctx.save_for_backward(logits, losses + logits[:, -1])
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        logits, log_sums = ctx.saved_tensors
        gradient = (logits - log_sums[:, None]).exp_().mul_(grad[:, None])
        gradient[:, -1] -= grad
        return gradient
