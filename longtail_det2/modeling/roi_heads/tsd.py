"""Task-aware spatial disentanglement (Song et al. 2020): classify and localise a proposal from two places.

Shape shorthand in this module:

    R: number of RoIs, combined over all images; Ri: of image i; P: bins of a RoI along each side
    N: number of images in the minibatch; K: number of foreground classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import build_box_head
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from longtail_det2.config import own_arguments
from longtail_det2.layers import (
    at_least_float32,
    classification_constraint,
    deform_roi_pool,
    matched_iou,
    progressive_constraint,
)
from longtail_det2.layers.deform_roi_pool import MODES
from longtail_det2.layers.progressive_constraint import FORMS
from longtail_det2.modeling.box_regression import foreground_pairs
from longtail_det2.modeling.events import name_scope
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .fast_rcnn import boxes_of
from .roi_heads import BOX_BRANCH_REGISTRY, BoxBranch, with_suffix

OFFSET_INITS = ("random", "zero")


class TSDPredictions(NamedTuple):
    """What :meth:`TSDBoxBranch.forward` returns.

    Attributes:
        logits: (R, L), from where the bins of each RoI have moved.
        deltas: (R, 4) or (R, 4 K), relative to `boxes`.
        boxes: (R, 4) moved RoIs, XYXY pixels.
        offsets: (R, 2, P, P) of the bins, before ``gamma``.
        sibling: logits and deltas of the sibling head; None at test time and without one.
    """

    logits: Tensor
    deltas: Tensor
    boxes: Tensor
    offsets: Tensor
    sibling: tuple[Tensor, Tensor] | None


class SiblingHead(nn.Module):
    """A plain box head and its predictor, which only training needs.

    Attributes:
        training_only: see :func:`longtail_det2.checkpoint.weights.training_only_parts`.
        head: from pooled features to features of the predictor.
        predictor: :class:`MultiLabelFastRCNNOutputLayers`, with a classification loss of its own.
    """

    training_only = True

    def __init__(self, head: nn.Module, predictor: Any) -> None:
        super().__init__()
        self.head, self.predictor = head, predictor

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and deltas for pooled features (R, C, P, P)."""
        return self.predictor(self.head(pooled))


@BOX_BRANCH_REGISTRY.register()
class TSDBoxBranch(BoxBranch):
    """Two box heads for a proposal: one sees its bins moved one by one, the other the whole of it moved.

    From the pooled features F of a proposal p of size (w, h) two small networks predict

        ``P_c``: offsets gamma * delta_c * (w, h) of each bin, pooled for the classification head
        ``P_r``: the box p + gamma * delta_r * (w, h), pooled for the regression head

    The classification head is the RoI heads' ``box_head`` and both predict with their ``box_predictor``, so
    that weights of a plain detector start it. Boxes are encoded and decoded relative to P_r.

    In training a **sibling** head, a plain box head with a predictor of its own, learns from F beside it, and
    the **progressive constraint** asks for scores of the positive classes and for overlaps with the objects
    that are better than the sibling's by a margin. Losses of the sibling have the suffix ``_sibling``; those
    of the constraint are ``loss_pc_cls`` and ``loss_pc_loc``. At test time there is no sibling, and weights
    without it are complete.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        regression_head: nn.Module,
        sibling_head: nn.Module | None = None,
        sibling_predictor: nn.Module | None = None,
        hidden_dim: int = 256,
        gamma: float = 0.1,
        sampling_ratio: int = 4,
        pooling: str = "aligned",
        offset_init: str = "random",
        detach_targets: bool = False,
        constraint: str = "shrinking",
        margins: Sequence[float] = (0.3, 0.3),
        constraint_weights: Sequence[float] = (1.0, 1.0),
    ) -> None:
        """Make the parts that a plain branch lacks.

        Args:
            input_shape: of the pooled features, (channels, P, P).
            regression_head: a module like the RoI heads' ``box_head``, with an output of the same shape.
            sibling_head: another such module; None for no sibling.
            sibling_predictor: a module like ``box_predictor``, with a classification loss of its own; it
                takes over the box transform.
            hidden_dim: width of the hidden layers that predict the offsets.
            gamma: see the class; 0 moves nothing.
            sampling_ratio: samples of a bin along each side; see :func:`deform_roi_pool`.
            pooling: "aligned" or "legacy", see :func:`deform_roi_pool`.
            offset_init: of the last layers that predict offsets: "random", N(0, 1 / `hidden_dim`) as in the
                released code, or "zero", which starts from a plain detector.
            detach_targets: whether delta_r gets no gradient from the regression targets, which depend on P_r.
            constraint: form of the constraint, see :func:`progressive_constraint`.
            margins: of the scores and of the overlaps, in [0, 1].
            constraint_weights: of ``loss_pc_cls`` and ``loss_pc_loc``; 0 leaves a loss out.

        Raises:
            ConfigError: an argument has another shape or value, or there is a constraint without sibling.
        """
        super().__init__()
        sizes = (input_shape.channels, input_shape.height, input_shape.width)
        if None in sizes or input_shape.height != input_shape.width:
            raise ConfigError(
                f"TSD pools square regions of known size, got (channels, height, width) {sizes}"
            )
        _check_choice("POOLING", pooling, MODES)
        _check_choice("OFFSET_INIT", offset_init, OFFSET_INITS)
        _check_choice("CONSTRAINT", constraint, FORMS)
        _check_pair("MARGINS", margins, 1.0)
        _check_pair("CONSTRAINT_WEIGHTS", constraint_weights, float("inf"))
        if (sibling_head is None) != (sibling_predictor is None):
            raise ConfigError("TSD needs both sibling_head and sibling_predictor, or neither")
        if sibling_head is None and any(constraint_weights):
            raise ConfigError(
                "without a sibling head (MODEL.TSD.SIBLING False) there is nothing to compare with: "
                "MODEL.TSD.CONSTRAINT_WEIGHTS must be (0.0, 0.0)"
            )
        self.gamma, self.sampling_ratio, self.pooling = gamma, sampling_ratio, pooling
        self.detach_targets, self.constraint = detach_targets, constraint
        self.margins, self.constraint_weights = tuple(margins), tuple(constraint_weights)
        bins = sizes[1]
        self.shared_fc = nn.Linear(sizes[0] * bins * bins, hidden_dim)
        self.delta_c = _offset_layers(hidden_dim, 2 * bins * bins, offset_init)
        self.delta_r = _offset_layers(hidden_dim, 2, offset_init)
        self.regression_head = regression_head
        self.sibling = None if sibling_head is None else SiblingHead(sibling_head, sibling_predictor)
        nn.init.kaiming_normal_(self.shared_fc.weight, a=1)
        nn.init.zeros_(self.shared_fc.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``MODEL.TSD``; the heads are those of ``MODEL.ROI_BOX_HEAD``."""
        node = dict(cfg.MODEL.TSD)
        arguments: dict[str, Any] = {"input_shape": input_shape}
        arguments["regression_head"] = build_box_head(cfg, input_shape)
        if node.pop("SIBLING"):
            arguments["sibling_head"] = head = build_box_head(cfg, input_shape)
            arguments["sibling_predictor"] = cls.predictor_class(cfg, head.output_shape)
        return {**arguments, **own_arguments(cls, node, "MODEL.TSD")}

    def attach(self, pooler: nn.Module, head: nn.Module, predictor: nn.Module) -> BoxBranch:
        """Use these parts from now on, see :meth:`BoxBranch.attach`; the sibling takes the box transform."""
        if self.sibling is not None:
            self.sibling.predictor.box2box_transform = predictor.box2box_transform
        return super().attach(pooler, head, predictor)

    def forward(self, features: list[Tensor], proposals: list[Instances]) -> TSDPredictions:
        """Return predictions for the proposals, see :class:`TSDPredictions`."""
        boxes = [image.proposal_boxes for image in proposals]
        pooled = self.pooler(features, boxes)
        offsets, moves = self._offsets(pooled)
        classified, regressed = self._pool_moved(features, boxes, offsets, moves)
        logits = self.predictor.cls_score(self.head(classified).flatten(1))
        deltas = self.predictor.bbox_pred(self.regression_head(regressed).flatten(1))
        corners = torch.cat([one.tensor for one in boxes])
        shift = self.gamma * moves * (corners[:, 2:] - corners[:, :2])
        sibling = self.sibling(pooled) if self.training and self.sibling is not None else None
        return TSDPredictions(logits, deltas, corners + torch.cat([shift, shift], dim=1), offsets, sibling)

    def losses(self, predictions: TSDPredictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Return the losses of both heads and of the constraint; see the class."""
        own, boxes = (predictions.logits, predictions.deltas), predictions.boxes
        moved = _with_boxes(proposals, boxes.detach() if self.detach_targets else boxes)
        losses = self.predictor.losses(own, moved)
        if predictions.sibling is None or self.sibling is None:
            return losses
        with name_scope("sibling"):
            beside = self.sibling.predictor.losses(predictions.sibling, proposals)
        losses |= with_suffix(beside, "_sibling")
        return losses | self._constraints(predictions, predictions.sibling, proposals)

    def scores(self, predictions: TSDPredictions, proposals: list[Instances]) -> Sequence[Tensor]:
        """Return scores (Ri, K + 1) per image, background last."""
        return self.predictor.predict_probs((predictions.logits, predictions.deltas), proposals)

    def boxes(self, predictions: TSDPredictions, proposals: list[Instances]) -> Sequence[Tensor]:
        """Return boxes (Ri, 4) or (Ri, 4 K) per image, decoded relative to P_r."""
        moved = _with_boxes(proposals, predictions.boxes)
        return self.predictor.predict_boxes((predictions.logits, predictions.deltas), moved)

    def _offsets(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return delta_c (R, 2, P, P) and delta_r (R, 2), in at least float32 also under autocast."""
        with torch.autocast(pooled.device.type, enabled=False):
            hidden = F.relu(self.shared_fc(at_least_float32(pooled).flatten(1)))
            bins, moves = self.delta_c(hidden), self.delta_r(hidden)
        return bins.view(-1, 2, *pooled.shape[2:]), moves

    def _pool_moved(
        self, features: list[Tensor], boxes: list[Boxes], offsets: Tensor, moves: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features (R, C, P, P) of P_c and of P_r, from the levels that the proposals are on."""
        pooler, rois, levels = self.pooler, convert_boxes_to_pooler_format(boxes), None
        if len(features) > 1:
            sizes = (pooler.canonical_box_size, pooler.canonical_level)
            levels = assign_boxes_to_levels(boxes, pooler.min_level, pooler.max_level, *sizes).repeat(2)
        if self.pooling == "legacy":  # whose corners include their pixels
            rois = torch.cat([rois[:, :3], rois[:, 3:] - 1], dim=1)
        both = torch.cat([offsets, moves[:, :, None, None].expand_as(offsets)])
        pooled = deform_roi_pool(
            features,
            rois.repeat(2, 1),
            both,
            output_size=offsets.shape[-1],
            spatial_scale=[level.spatial_scale for level in pooler.level_poolers],
            sampling_ratio=self.sampling_ratio,
            gamma=self.gamma,
            mode=self.pooling,
            levels=levels,
        )
        classified, regressed = pooled.unflatten(0, (2, -1))
        return classified, regressed

    def _constraints(
        self, predictions: TSDPredictions, sibling: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Return ``loss_pc_cls`` and ``loss_pc_loc``, except those of weight 0.

        Both are means as in the released code: over all known regions, and over the foreground regions; an
        image without foreground is one region, whose constraint is 0.
        """
        targets = MultiLabelTargets.from_proposals(proposals, self.predictor.num_classes)
        targets = targets.to(predictions.logits.device)
        sizes = [len(image) for image in proposals]
        present = torch.stack([one.any() for one in targets.foreground.split(sizes)])
        of_row = torch.cat([one.expand(size) for one, size in zip(present, sizes, strict=True)])
        absent = (~present).sum()
        losses = {}
        if self.constraint_weights[0]:
            loss = self.predictor.classification_loss
            reference, scores = loss.scores(sibling[0].detach()), loss.scores(predictions.logits)
            positive = targets.labels == POSITIVE
            lacking = classification_constraint(reference, scores, positive, self.margins[0], self.constraint)
            counted = of_row & targets.known
            mean = (lacking * counted).sum() / (counted.sum() + absent).clamp(min=1)
            losses["loss_pc_cls"] = self.constraint_weights[0] * mean
        if self.constraint_weights[1]:
            lacking = self._lacking_overlap(predictions, sibling[1].detach(), proposals, targets)
            mean = lacking.sum() / (targets.foreground.sum() + absent).clamp(min=1)
            losses["loss_pc_loc"] = self.constraint_weights[1] * mean
        return losses

    def _lacking_overlap(
        self,
        predictions: TSDPredictions,
        reference: Tensor,
        proposals: list[Instances],
        targets: MultiLabelTargets,
    ) -> Tensor:
        """Return (P,) constraints on the overlaps of predicted boxes with their objects, weighted by label.

        P pairs of a foreground region and a positive label; see :func:`foreground_pairs`.
        """
        boxes, gt_boxes = boxes_of(proposals, reference.device)
        rows, columns, weights = foreground_pairs(targets, reference.shape[1])
        overlaps = []
        for deltas, start in ((reference, boxes), (predictions.deltas, predictions.boxes)):
            chosen = deltas.unflatten(1, (-1, 4))[rows, columns]
            decoded = self.predictor.box2box_transform.apply_deltas(chosen, start[rows])
            overlaps.append(matched_iou(decoded, gt_boxes[rows]))
        return progressive_constraint(overlaps[0], overlaps[1], self.margins[1], self.constraint) * weights


def _offset_layers(hidden_dim: int, outputs: int, init: str) -> nn.Sequential:
    first, last = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, outputs)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    if init == "zero":
        nn.init.zeros_(last.weight)
    return nn.Sequential(first, nn.ReLU(), last)


def _with_boxes(proposals: list[Instances], boxes: Tensor) -> list[Instances]:
    """Return the proposals with other boxes, (R, 4) over all images."""
    parts = boxes.split([len(image) for image in proposals])
    return [
        Instances(image.image_size, **{**image.get_fields(), "proposal_boxes": Boxes(part)})
        for image, part in zip(proposals, parts, strict=True)
    ]


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"MODEL.TSD.{key} is {value!r}; it must be one of {', '.join(known)}")


def _check_pair(key: str, values: Sequence[float], at_most: float) -> None:
    if len(values) != 2 or not all(0 <= value <= at_most for value in values):
        raise ConfigError(
            f"MODEL.TSD.{key} is {values}; it must be two numbers in [0, {at_most:g}], for scores and boxes"
        )
