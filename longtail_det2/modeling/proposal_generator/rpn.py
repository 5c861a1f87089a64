"""A region proposal network whose sampling, normalizer and losses can be replaced.

Shape shorthand: N images, R anchors per image over all levels, S sampled anchors over all images, P of them
positive.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32
from longtail_det2.modeling.anchor_priors import measured_prior
from longtail_det2.modeling.box_regression import pair_losses
from longtail_det2.modeling.events import log_ratios, logging_due
from longtail_det2.modeling.losses import (
    GuidedLossScaling,
    LossNormalizer,
    build_guided_loss,
    class_priors,
)


@PROPOSAL_GENERATOR_REGISTRY.register()
class NormalizedRPN(RPN):
    """Detectron2's RPN, with equal losses by default, cut into the parts that methods change.

    Which anchors are sampled is :meth:`_subsample_labels`, what they cost :meth:`objectness_losses` and
    :meth:`box_losses`, what the sums are divided by the argument `loss_normalizer`, what becomes of the
    scalars :meth:`losses`.
    """

    @configurable
    def __init__(
        self,
        *,
        loss_normalizer: str | LossNormalizer = "regions",
        guided_loss: GuidedLossScaling | None = None,
        prior_prob: float = 0.5,
        **kwargs: Any,
    ) -> None:
        """Make the network.

        Args:
            loss_normalizer: a name of :class:`LossNormalizer`, or one. Here "regions" is the number of
                anchors that sampling aims at, `batch_size_per_image` times N, as in Detectron2.
            guided_loss: scales ``loss_rpn_cls``; None for the loss as it is.
            prior_prob: score of every anchor before training, in (0, 1).
            kwargs: the arguments of Detectron2's class.

        Raises:
            ConfigError: `prior_prob` is outside (0, 1).
        """
        super().__init__(**kwargs)
        if isinstance(loss_normalizer, str):
            loss_normalizer = LossNormalizer(loss_normalizer)
        self.loss_normalizer = loss_normalizer
        self.guided_loss = guided_loss
        prior = class_priors(prior_prob, 1, shared=False)
        if prior_prob != 0.5:
            nn.init.constant_(self.rpn_head.objectness_logits.bias, torch.logit(prior).item())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read Detectron2's keys, ``LOSS_NORMALIZER``, ``PRIOR_PROB`` and ``GUIDED_SCALE``."""
        keys = cfg.MODEL.RPN
        return {
            **super().from_config(cfg, input_shape),
            "loss_normalizer": keys.LOSS_NORMALIZER,
            "guided_loss": build_guided_loss(keys),
            "prior_prob": keys.PRIOR_PROB or measured_prior(cfg, "objectness") or 0.5,
        }

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return ``loss_rpn_cls`` and ``loss_rpn_loc``; the arguments are those of Detectron2's method."""
        images = len(gt_labels)
        labels = torch.stack(gt_labels).flatten()
        positive, negative = labels == 1, labels == 0
        if logging_due():
            counts = {"rpn/num_pos_anchors": positive.sum(), "rpn/num_neg_anchors": negative.sum()}
            log_ratios({name: (count, images) for name, count in counts.items()})
        sampled, rows = (positive | negative).nonzero()[:, 0], positive.nonzero()[:, 0]
        logits = torch.cat(pred_objectness_logits, dim=1).flatten()[sampled]
        boxes = Boxes.cat(anchors).tensor
        sums = {
            "loss_rpn_cls": self.objectness_losses(logits, labels[sampled]).sum(),
            "loss_rpn_loc": self.box_losses(
                boxes[rows % len(boxes)],
                torch.stack(gt_boxes).flatten(0, 1)[rows],
                torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)[rows],
            ).sum(),
        }
        divisor, _ = self.loss_normalizer(self.batch_size_per_image * images, positive.sum())
        losses = {name: value / divisor * self.loss_weight.get(name, 1.0) for name, value in sums.items()}
        if self.guided_loss is None:
            return losses
        return self.guided_loss({"loss_rpn_cls": losses.pop("loss_rpn_cls")}, losses)

    def objectness_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the binary cross entropy (S,) of logits (S,) and labels (S,), 1 or 0."""
        logits = at_least_float32(logits)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")

    def box_losses(self, anchors: Tensor, gt_boxes: Tensor, deltas: Tensor) -> Tensor:
        """Return the box loss (P,) of anchors, the objects that they match and deltas, (P, 4) each."""
        return pair_losses(
            anchors, gt_boxes, deltas, self.box2box_transform, self.box_reg_loss_type, self.smooth_l1_beta
        )
