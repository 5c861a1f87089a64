"""The predictor of a region: boxes as in Fast R-CNN, classes as its classification loss wants them.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of RoIs, combined over all images; Ri: of image i
    K: number of foreground classes; background is class K and the last column
    L: number of logits of the classification loss
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn

from longtail_det2.modeling.events import event_storage
from longtail_det2.modeling.losses import ClassificationLoss, build_classification_loss
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .box_regression import keep_top_candidates, multi_label_box_loss
from .classifiers import MakeLayer, classifier_named

LOG_PERIOD = 20
"""Iterations between two readings of the accuracy; reading it waits for the device."""


class MultiLabelFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Box deltas and class logits of regions that may have several labels.

    How many logits there are, how they become scores and what they cost is asked of the classification loss.
    At test time a box can come out with several labels: each class with a score above the threshold is a
    detection of its own, and non-maximum suppression is within a class.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classification_loss: ClassificationLoss,
        num_classes: int,
        classifier: MakeLayer = nn.Linear,
        test_pre_nms_topk: int = 0,
        **kwargs: Any,
    ) -> None:
        """Makes the two layers.

        Args:
            input_shape: of one region's features, (channels,) or (channels, height, width).
            classification_loss: see :class:`ClassificationLoss`.
            num_classes: K.
            classifier: called with (number of features, L), gives the layer that makes the logits; see
                :func:`classifier_named`.
            test_pre_nms_topk: at most so many (box, class) pairs of an image go into non-maximum suppression;
                0 for no limit.
            kwargs: the other arguments of Detectron2's :class:`FastRCNNOutputLayers`.

        Raises:
            ConfigError: `num_classes` is not positive.
        """
        if num_classes < 1:
            raise ConfigError(f"the predictor needs at least one class, got num_classes={num_classes}")
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        num_logits = classification_loss.num_logits(num_classes)
        self.cls_score = classifier(self.bbox_pred.in_features, num_logits)
        self.classification_loss = classification_loss
        self.test_pre_nms_topk = test_pre_nms_topk
        self._initialise_classifier(num_logits)

    def _initialise_classifier(self, num_logits: int) -> None:
        """Small weights and the loss's bias, in a plain linear layer; other layers know their own."""
        if not isinstance(self.cls_score, nn.Linear):
            return
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        bias = self.classification_loss.initial_bias(num_logits)
        if bias is not None:
            with torch.no_grad():
                self.cls_score.bias.copy_(bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Detectron2's keys, the loss and the classifier, and ``MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST``."""
        arguments = super().from_config(cfg, input_shape)
        keys = cfg.MODEL.ROI_BOX_HEAD
        arguments["classifier"] = classifier_named(keys.CLASSIFIER, keys.TEMPERATURE)
        arguments["classification_loss"] = build_classification_loss(cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        arguments["test_pre_nms_topk"] = cfg.MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST
        return arguments

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Classification and box losses of sampled proposals.

        Args:
            predictions: logits (R, L) and deltas (R, 4) or (R, 4 K) from :meth:`forward`.
            proposals: of N images, with ``proposal_boxes`` and ``gt_classes``; with ``gt_boxes`` and
                ``gt_labels`` unless their image has no objects.

        Returns:
            The classification loss's scalars and ``loss_box_reg``, each times its ``loss_weight``.
        """
        logits, deltas = predictions
        targets = MultiLabelTargets.from_proposals(proposals, self.num_classes).to(logits.device)
        self._log_accuracy(logits, targets)
        losses = dict(self.classification_loss(logits, targets))
        losses["loss_box_reg"] = multi_label_box_loss(
            *_boxes_of(proposals, deltas.device),
            deltas,
            targets,
            transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        weights: Any = self.loss_weight
        return {name: value * weights.get(name, 1.0) for name, value in losses.items()}

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Scores (Ri, K + 1) of each image, background last."""
        scores = self.classification_loss.activation(predictions[0])
        return scores.split([len(image) for image in proposals])

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image and the proposal that each came from, as Detectron2 returns them."""
        boxes = self.predict_boxes(predictions, proposals)
        scores = [
            keep_top_candidates(image_scores, self.test_pre_nms_topk)
            for image_scores in self.predict_probs(predictions, proposals)
        ]
        return fast_rcnn_inference(
            list(boxes),
            scores,
            [image.image_size for image in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    @torch.no_grad()
    def _log_accuracy(self, logits: Tensor, targets: MultiLabelTargets) -> None:
        """Every so often: the share of foreground regions whose best-scored class is one of their labels."""
        storage = event_storage()
        if storage is None or (storage.iter + 1) % LOG_PERIOD or len(targets) == 0:
            return
        best = self.classification_loss.activation(logits)[:, :-1].argmax(dim=1, keepdim=True)
        hit = targets.labels.gather(1, best)[:, 0] == POSITIVE
        foreground = targets.classes < self.num_classes
        counts = torch.stack([(hit & foreground).sum(), foreground.sum()]).tolist()
        if counts[1]:
            storage.put_scalar("fast_rcnn/fg_cls_accuracy", counts[0] / counts[1])


def _boxes_of(proposals: list[Instances], device: torch.device) -> tuple[Tensor, Tensor]:
    """Proposal boxes and matched objects' boxes, (R, 4) each; images without objects repeat the former."""
    if not proposals:
        nothing = torch.zeros(0, 4, device=device)
        return nothing, nothing
    boxes = cat([image.proposal_boxes.tensor for image in proposals])
    matched = cat(
        [(image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor for image in proposals]
    )
    return boxes, matched
