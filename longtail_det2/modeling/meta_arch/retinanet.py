"""RetinaNet (Lin et al. 2017) whose anchors have all labels of the object that they match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor

from longtail_det2.structures.dense_targets import MATCHED_NOTHING, MATCHED_UNCLEAR, DenseTargets

from .dense import (
    MultiLabelDenseDetector,
    MultiLabelRetinaNetHead,
    dense_arguments,
    dense_class_and_box_losses,
    level_shapes,
    log_positives,
)


@META_ARCH_REGISTRY.register()
class MultiLabelRetinaNet(MultiLabelDenseDetector, RetinaNet):
    """RetinaNet with any classification loss that serves dense heads, and multi-label truth.

    Anchors that overlap an object neither enough nor little have no loss. At test time each class of an
    anchor that scores above the threshold is a detection of its own; non-maximum suppression is within a
    class. With :class:`SigmoidFocalLoss` and one label an object this is Detectron2's RetinaNet; see
    :class:`PositivesAverage` for what the losses are divided by.
    """

    initial_positives = 100.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads Detectron2's keys in ``MODEL.RETINANET`` and ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS``."""
        # Not by way of Detectron2's method, which would make a head of its own.
        keys, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
        anchor_generator = build_anchor_generator(cfg, level_shapes(backbone, keys.IN_FEATURES))
        num_anchors = anchor_generator.num_cell_anchors[0]
        return {
            **dense_arguments(cfg, keys, backbone, MultiLabelRetinaNetHead, num_anchors=num_anchors),
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=keys.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS, allow_low_quality_matches=True),
            "smooth_l1_beta": keys.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": keys.BBOX_REG_LOSS_TYPE,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The classification loss's scalars and ``loss_box_reg``."""
        logits, deltas = self.split_predictions(predictions)
        anchors = self.anchor_generator(features)
        targets, boxes = self.label_objects(anchors, gt_instances)
        log_positives(len(targets.rows), len(gt_instances))
        return dense_class_and_box_losses(
            self.head,
            logits,
            deltas,
            anchors,
            targets,
            boxes,
            self.loss_normalizer(len(targets.rows)),
            transform=self.box2box_transform,
            loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )

    @torch.no_grad()
    def label_objects(
        self, anchors: Sequence[Boxes], objects: Sequence[Instances]
    ) -> tuple[DenseTargets, Tensor]:
        """Targets of the anchors of all images, and (P, 4) the boxes that the positive ones matched."""
        joined = Boxes.cat(list(anchors))
        matches = []
        for image in objects:
            index, label = self.anchor_matcher(pairwise_iou(image.gt_boxes, joined))
            background = torch.where(label == 0, MATCHED_NOTHING, MATCHED_UNCLEAR)
            matches.append(torch.where(label == 1, index, background))
        return DenseTargets.from_matches(matches, objects, self.num_classes)
