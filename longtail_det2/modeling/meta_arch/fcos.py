"""FCOS (Tian et al. 2019) whose locations have all labels of the object that they belong to."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32
from longtail_det2.structures.multi_label import BACKGROUND

from .dense import MultiLabelDenseDetector, MultiLabelFCOSHead, dense_arguments


@META_ARCH_REGISTRY.register()
class MultiLabelFCOS(MultiLabelDenseDetector, FCOS):
    """FCOS with any classification loss that serves dense heads, for objects with several labels.

    A location belongs to the smallest object whose centre region it is in, at the level of the object's size.
    At test time the score of a class is the square root of the loss's score times the centerness, and that is
    what the thresholds are compared with, but for the adaptive ones: those are for the loss's score alone.
    With :class:`SigmoidFocalLoss` and one label per object this is Detectron2's FCOS; see
    :class:`LossNormalizer` for what the losses are divided by. The losses are those of the classification
    loss, ``loss_box_reg`` (generalised IoU) and ``loss_centerness``.
    """

    initial_foreground = 300.0
    box_reg_loss_type = "giou"
    smooth_l1_beta = 0.0
    other_widths = (1,)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.FCOS`` and ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS``."""
        keys = cfg.MODEL.FCOS
        return {
            **dense_arguments(cfg, keys, build_backbone(cfg), MultiLabelFCOSHead, num_losses=3),
            "center_sampling_radius": keys.CENTER_SAMPLING_RADIUS,
        }

    def other_losses(self, anchors: Tensor, gt_boxes: Tensor, *others: Tensor) -> dict[str, Tensor]:
        """Return the binary cross entropy of the centerness; see the base class."""
        (logits,) = (values[:, 0] for values in others)
        with torch.autocast(logits.device.type, enabled=False):
            wanted = centerness_of(self.box2box_transform.get_deltas(anchors, gt_boxes)).to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return {"loss_centerness": losses}

    def match_image(self, anchors: list[Boxes], image: Instances) -> Tensor:
        """Match the smallest object around a location; see the base class."""
        if len(image) == 0:
            count = sum(len(level) for level in anchors)
            return torch.full((count,), BACKGROUND, dtype=torch.int64, device=anchors[0].device)
        if hasattr(self, "match_anchors"):
            return self.match_anchors(anchors, [image])[0]
        # Newer versions of Detectron2 match one image, and say how well instead of -1.
        quality = self._match_anchors(image.gt_boxes, anchors)  # pyright: ignore
        best, index = quality.max(dim=0)
        return torch.where(best < 1e-5, BACKGROUND, index)

    @MultiLabelDenseDetector.test_score_thresh.getter
    def test_score_thresh(self) -> Tensor:
        """(K,) float32, without the adaptive ones."""
        return self.score_thresholds

    def scores(self, logits: Tensor, *others: Tensor) -> Tensor:
        """Return the square root of the score times the centerness, whose logits are (Ri, 1)."""
        scores = super().scores(logits)
        if self.adaptive_thresholds is not None:
            scores = torch.where(scores > self.adaptive_thresholds(), scores, 0.0)
        return torch.sqrt(scores * at_least_float32(others[0]).sigmoid())


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet with the levels p3 to p7, where p6 and p7 come from p5 instead of RetinaNet's res5."""
    keys = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=keys.IN_FEATURES,
        out_channels=keys.OUT_CHANNELS,
        norm=keys.NORM,
        top_block=LastLevelP6P7(keys.OUT_CHANNELS, keys.OUT_CHANNELS, in_feature="p5"),
        fuse_type=keys.FUSE_TYPE,
    )


def centerness_of(distances: Tensor) -> Tensor:
    """Return how central a location is: sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)).

    Args:
        distances: (P, 4) from the location to the left, top, right and bottom edge; all positive.

    Returns:
        (P,) in [0, 1] (Tian et al. 2019, equation 3).
    """
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratio = (horizontal.amin(dim=1) / horizontal.amax(dim=1)) * (vertical.amin(dim=1) / vertical.amax(dim=1))
    return ratio.sqrt()
