"""Detectron2's standard RoI heads with a box branch for regions with several labels."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .box_branch import BoxBranch, box_parts_from_config


@ROI_HEADS_REGISTRY.register()
class MultiLabelROIHeads(StandardROIHeads):
    """Box, mask and keypoint heads; a sampled proposal has the labels of the object that it matches.

    Objects have their labels in the field ``gt_labels`` (n, K) of the training instances, which Detectron2
    copies to the proposals like every ``gt_`` field. Without that field an object has the one label
    ``gt_classes``, so single-label data sets work unchanged.
    """

    @configurable
    def __init__(self, *, box_branch: BoxBranch | None = None, **kwargs: Any) -> None:
        """Make the heads.

        Args:
            box_branch: None for :class:`BoxBranch`.
            kwargs: the arguments of Detectron2's class.

        Raises:
            ConfigError: the predictor is not one for several labels.
        """
        super().__init__(**kwargs)
        self.box_branch = BoxBranch() if box_branch is None else box_branch
        self._attached_branch()

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = box_parts_from_config(cfg, input_shape)
        for plural, name in (("heads", "head"), ("predictors", "predictor"), ("branches", "branch")):
            parts[f"box_{name}"] = parts.pop(f"box_{plural}")[0]
        return parts

    def _attached_branch(self) -> BoxBranch:
        return self.box_branch.attach(self.box_pooler, self.box_head, self.box_predictor)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        branch = self._attached_branch()
        predictions = branch([features[name] for name in self.box_in_features], proposals)
        if not self.training:
            boxes, scores = branch.boxes(predictions, proposals), branch.scores(predictions, proposals)
            return branch.detect(boxes, scores, proposals)
        losses = branch.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = branch.boxes_of_gt_classes(predictions, proposals)
                for image, of_image in zip(proposals, boxes, strict=True):
                    image.proposal_boxes = Boxes(of_image)
        return losses
