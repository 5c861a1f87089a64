"""The predictor of a region: boxes as in Fast R-CNN, classes as its classification loss wants them.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of RoIs, combined over all images; Ri: of image i
    K: number of foreground classes; background is class K and the last column
    L: number of logits of the classification loss
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from longtail_det2.modeling.box_regression import multi_label_box_loss
from longtail_det2.modeling.events import log_ratios, logging_due
from longtail_det2.modeling.losses import (
    ClassificationLoss,
    GuidedLossScaling,
    LossNormalizer,
    build_classification_loss,
    build_guided_loss,
    is_recomputed,
    reduce_losses,
)
from longtail_det2.modeling.score_thresholds import ScoreThresholds, make_adaptive
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets

from .classifiers import MakeLayer, build_classifier, initialize_classifier


class MultiLabelFastRCNNOutputLayers(ScoreThresholds, FastRCNNOutputLayers):
    """Predict box deltas and class logits of regions that may have several labels.

    The classification loss says how many logits there are, how they become scores and what they cost. At test
    time a box can have several labels: each class with a score above its threshold is a detection, and
    non-maximum suppression is within a class.

    Attributes:
        test_score_thresh: (K,) thresholds, see :class:`ScoreThresholds`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classification_loss: ClassificationLoss,
        num_classes: int,
        classifier: MakeLayer = nn.Linear,
        loss_normalizer: str | LossNormalizer = "regions",
        guided_loss: GuidedLossScaling | None = None,
        adaptive_threshold: str = "",
        test_pre_nms_topk: int = 0,
        **kwargs: Any,
    ) -> None:
        """Make the two layers.

        Args:
            input_shape: of the features per region, (channels,) or (channels, height, width).
            classification_loss: see :class:`ClassificationLoss`.
            num_classes: K.
            classifier: called with (number of features, L), returns the layer that makes the logits; see
                :func:`build_classifier`.
            loss_normalizer: what both losses are divided by; a name of :class:`LossNormalizer`, or one.
            guided_loss: scales the classification losses; None for the losses as they are.
            adaptive_threshold: kind of :class:`AdaptiveThresholds`, counted from the regions of training; ""
                for `test_score_thresh` alone.
            test_pre_nms_topk: upper bound of the (box, class) pairs per image that enter non-maximum
                suppression; 0 for no bound.
            kwargs: the other arguments of Detectron2's :class:`FastRCNNOutputLayers`. `test_score_thresh` may
                be a number or K numbers.

        Raises:
            ConfigError: the loss has another number of classes, or `loss_normalizer` has an unknown name.
        """
        classification_loss.check_num_classes(num_classes)
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.cls_score = classifier(self.bbox_pred.in_features, classification_loss.num_logits)
        self.classification_loss = classification_loss
        if isinstance(loss_normalizer, str):
            loss_normalizer = LossNormalizer(loss_normalizer)
        self.loss_normalizer = loss_normalizer
        self.guided_loss = guided_loss
        self.adaptive_thresholds = make_adaptive(num_classes, adaptive_threshold)
        self.test_pre_nms_topk = test_pre_nms_topk
        initialize_classifier(self.cls_score, classification_loss.bias(None))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read Detectron2's keys, and this project's in ``ROI_BOX_HEAD`` and ``ROI_HEADS``."""
        arguments = super().from_config(cfg, input_shape)
        keys = cfg.MODEL.ROI_BOX_HEAD
        arguments["classifier"] = build_classifier(keys.CLASSIFIER, keys.TEMPERATURE)
        arguments["classification_loss"] = build_classification_loss(cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        arguments["loss_normalizer"] = keys.LOSS_NORMALIZER
        arguments["guided_loss"] = build_guided_loss(keys)
        arguments["adaptive_threshold"] = keys.ADAPTIVE_THRESHOLD
        arguments["test_pre_nms_topk"] = cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST
        return arguments

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Return the classification and box losses of sampled proposals.

        Args:
            predictions: logits (R, L) and deltas (R, 4) or (R, 4 K) from :meth:`forward`.
            proposals: of N images, with ``proposal_boxes`` and ``gt_classes``; with ``gt_boxes`` and
                ``gt_labels`` unless their image has no objects.

        Returns:
            The scalars of the classification loss, each times the weight of its key or else of ``loss_cls``
            in ``loss_weight``, and ``loss_box_reg``.
        """
        logits, deltas = predictions
        targets = MultiLabelTargets.from_proposals(proposals, self.num_classes).to(logits.device)
        if logging_due() and len(targets):
            self._log_accuracy(logits, targets)
        loss = self.classification_loss
        weights: Any = self.loss_weight
        if self.training and torch.is_grad_enabled() and not is_recomputed():
            loss.update(targets)
            if self.adaptive_thresholds is not None:
                self.adaptive_thresholds.update(targets, targets.known.sum())
        foreground = targets.foreground.sum()
        divisor, box_divisor = self.loss_normalizer(len(targets), foreground, self.num_classes)
        losses = reduce_losses(loss.unreduced(logits, targets), divisor, weights)
        box_loss = weights.get("loss_box_reg", 1.0) * multi_label_box_loss(
            *boxes_of(proposals, deltas.device),
            deltas,
            targets,
            transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
            normalizer=box_divisor,
        )
        others = {"loss_box_reg": box_loss}
        return {**losses, **others} if self.guided_loss is None else self.guided_loss(losses, others)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Return scores (Ri, K + 1) per image, background last."""
        scores = self.classification_loss.scores(predictions[0])
        return scores.split([len(image) for image in proposals])

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return detections per image and the proposal that each came from, as Detectron2 does."""
        boxes, scores = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        return self.detect(boxes, scores, [image.image_size for image in proposals])

    def detect(
        self, boxes: Sequence[Tensor], scores: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Turn boxes and scores into detections: thresholds, suppression within a class, the best ones.

        Every detection of RoI heads comes from here.

        Args:
            boxes: per image (Ri, 4) or (Ri, 4 K), XYXY pixels.
            scores: per image (Ri, K + 1), background last.
            image_sizes: per image (height, width).

        Returns:
            Per image the detections, and (n,) the row that each came from.
        """
        thresholds = self.test_score_thresh
        scores = [keep_top_candidates(one, self.test_pre_nms_topk, thresholds) for one in scores]
        return fast_rcnn_inference(
            list(boxes),
            scores,
            list(image_sizes),
            thresholds,  # pyright: ignore[reportArgumentType]
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    @torch.no_grad()
    def _log_accuracy(self, logits: Tensor, targets: MultiLabelTargets) -> None:
        """Log the share of foreground regions whose best class is one of their labels."""
        best = self.classification_loss.scores(logits)[:, :-1].argmax(dim=1, keepdim=True)
        hit = targets.labels.gather(1, best)[:, 0] == POSITIVE
        foreground = targets.foreground
        log_ratios({"fast_rcnn/fg_cls_accuracy": ((hit & foreground).sum(), foreground.sum())})


def keep_top_candidates(scores: Tensor, limit: int, thresholds: Tensor | float = -1.0) -> Tensor:
    """Bound how many (region, class) pairs of an image can reach non-maximum suppression.

    Args:
        scores: (R, K + 1) of one image, background last, not negative.
        limit: number of foreground entries to keep; 0 or less keeps all.
        thresholds: scalar or (K,); entries that are not above it do not count.

    Returns:
        (R, K + 1) where all foreground entries but the `limit` largest are -1, which no threshold lets pass;
        `scores` itself when nothing has to go.
    """
    if limit <= 0:
        return scores
    foreground = scores[:, :-1]
    flat = foreground.flatten()
    size = torch.sym_min(flat.shape[0], limit)
    if not torch.compiler.is_exporting() and len(flat) <= limit:  # a recorded branch is fixed
        return scores
    foreground = torch.where(foreground > thresholds, foreground, -1.0)
    values, places = torch.topk(foreground.flatten(), size, sorted=False)
    kept = torch.full_like(flat, -1.0).scatter_(0, places, values)
    return torch.cat([kept.view_as(foreground), scores[:, -1:]], dim=1)


def boxes_of(proposals: list[Instances], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return proposal boxes and gt boxes, (R, 4) each; images without objects repeat the proposal boxes."""
    if not proposals:
        nothing = torch.zeros(0, 4, device=device)
        return nothing, nothing
    boxes = cat([image.proposal_boxes.tensor for image in proposals])
    matched = cat(
        [(image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor for image in proposals]
    )
    return boxes, matched
