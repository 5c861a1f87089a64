"""Detectron2's standard ROI heads with the multi-label predictor."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

from .fast_rcnn import MultiLabelFastRCNNOutputLayers


@ROI_HEADS_REGISTRY.register()
class MultiLabelROIHeads(StandardROIHeads):
    """Box, mask and keypoint heads; a sampled proposal has the labels of the object that it matches.

    Objects bring their labels in the field ``gt_labels`` (n, K) of the training instances, which Detectron2
    copies to the proposals like every ``gt_`` field. Without that field an object has the one label
    ``gt_classes``, so single-label data sets work unchanged.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        shape = parts["box_head"].output_shape
        parts["box_predictor"] = MultiLabelFastRCNNOutputLayers(cfg, shape)  # pyright: ignore[reportCallIssue]
        return parts
