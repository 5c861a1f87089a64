"""Softmax cross entropy over the classes and background, the baseline of every published method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets

from .base import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy

DENSE_PRIOR = 0.01
"""Probability that an anchor is no background before training, in a dense head."""


@CLASSIFICATION_LOSS_REGISTRY.register()
class SoftmaxCrossEntropyLoss(ClassificationLoss):
    """One label a region: its most specific one; all other classes are negatives.

    ``loss_cls`` = -(1 / R') sum_r log softmax(z_r)[c_r], where c_r in [0, K] is the region's class and R' the
    number of regions with c_r >= 0 (a region of class -1 is left out). With R' = R it is Detectron2's loss.
    """

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
    ) -> dict[str, Any]:
        """Nothing to configure."""
        return {}

    def num_logits(self, num_classes: int) -> int:
        """K + 1: background is the last."""
        return num_classes + 1

    def activation(self, logits: Tensor) -> Tensor:
        """Softmax over the K + 1 logits; see the contract."""
        return F.softmax(at_least_float32(logits), dim=1)

    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """See the class and the contract; the one key is ``loss_cls``."""
        with torch.autocast(logits.device.type, enabled=False):
            known = targets.classes >= 0
            losses = F.cross_entropy(at_least_float32(logits), targets.classes.clamp(min=0), reduction="none")
            return {"loss_cls": (losses * known).sum() / known.sum().clamp(min=1)}

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """The sum of cross entropies over the anchors of class >= 0, by `normalizer`, as ``loss_cls``.

        Background is a class like the others and no anchor is left out; :meth:`dense_bias` keeps the loss of
        the many background anchors small from the start.
        """
        with torch.autocast(logits.device.type, enabled=False):
            total = F.cross_entropy(
                at_least_float32(logits), targets.classes, ignore_index=-1, reduction="sum"
            )
            return {"loss_cls": total / normalizer}

    def dense_bias(self, num_logits: int) -> Tensor:
        """Background has probability 1 - `DENSE_PRIOR`, the K classes share the rest equally."""
        bias = torch.zeros(num_logits)
        bias[-1] = math.log((num_logits - 1) * (1.0 - DENSE_PRIOR) / DENSE_PRIOR)
        return bias
