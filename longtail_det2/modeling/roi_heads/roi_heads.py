"""Detectron2's standard ROI heads with the multi-label predictor."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_box_head

from longtail_det2.utils.errors import ConfigError

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
        # Not by way of Detectron2's method: that would make a second predictor, which costs random numbers,
        # and the same seed would give other weights than in a lazy config.
        features, pooler, pooled_shape = build_box_pooler(cfg, input_shape)
        box_head = build_box_head(cfg, pooled_shape)
        predictor = MultiLabelFastRCNNOutputLayers(
            cfg,
            box_head.output_shape,  # pyright: ignore[reportCallIssue]
        )
        return {
            "box_in_features": features,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": predictor,
        }


def build_box_pooler(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> tuple[list[str], ROIPooler, ShapeSpec]:
    """What cuts the regions out of the features.

    Args:
        cfg: ``MODEL.ROI_HEADS.IN_FEATURES`` and ``MODEL.ROI_BOX_HEAD.POOLER_*`` are read.
        input_shape: of the backbone's levels.

    Returns:
        Names of the levels, the pooler, and the shape of what it gives for one region.

    Raises:
        ConfigError: the levels have different numbers of channels.
    """
    keys = cfg.MODEL.ROI_BOX_HEAD
    features = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    channels = {input_shape[name].channels for name in features}
    if len(channels) != 1:
        raise ConfigError(f"MODEL.ROI_HEADS.IN_FEATURES {features} must have equal channels, got {channels}")
    pooler = ROIPooler(
        output_size=keys.POOLER_RESOLUTION,
        scales=tuple(1.0 / (input_shape[name].stride or 1) for name in features),
        sampling_ratio=keys.POOLER_SAMPLING_RATIO,
        pooler_type=keys.POOLER_TYPE,
    )
    size = keys.POOLER_RESOLUTION
    return features, pooler, ShapeSpec(channels=channels.pop(), height=size, width=size)
