"""RetinaNet (Lin et al. 2017) whose anchors have all labels of the object that they match."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from longtail_det2.structures.multi_label import BACKGROUND, IGNORE

from .dense import MultiLabelDenseDetector, MultiLabelRetinaNetHead, dense_arguments, level_shapes


@META_ARCH_REGISTRY.register()
class MultiLabelRetinaNet(MultiLabelDenseDetector, RetinaNet):
    """RetinaNet with any classification loss that serves dense heads, for objects with several labels.

    Anchors whose overlap with an object is between the two thresholds have no loss. At test time each class
    of an anchor that scores above its threshold is a detection; non-maximum suppression is within a class.
    With :class:`SigmoidFocalLoss` and one label per object this is Detectron2's RetinaNet; see
    :class:`LossNormalizer` for what the losses are divided by.
    """

    initial_foreground = 100.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read Detectron2's keys in ``MODEL.RETINANET`` and ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS``."""
        # Not by way of Detectron2's method, which would build its own head.
        keys, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
        anchor_generator = build_anchor_generator(cfg, level_shapes(backbone, keys))
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

    def match_image(self, anchors: list[Boxes], image: Instances) -> Tensor:
        """Match by overlap; see the base class."""
        index, label = self.anchor_matcher(pairwise_iou(image.gt_boxes, Boxes.cat(anchors)))
        background = torch.where(label == 0, BACKGROUND, IGNORE)
        return torch.where(label == 1, index, background)
