"""Cascade R-CNN (Cai and Vasconcelos 2018) for regions with several labels.

Shape shorthand in this module:

    S: number of cascade stages
    N: number of images in the minibatch; Ri: number of RoIs of image i
    K: number of foreground classes; background is class K and the last column
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from longtail_det2.modeling.events import log_ratios, logging_due, name_scope
from longtail_det2.utils.errors import ConfigError

from .roi_heads import BoxBranch, box_parts_from_config, with_suffix


@ROI_HEADS_REGISTRY.register()
class MultiLabelCascadeROIHeads(CascadeROIHeads):
    """S box branches in a row, each refining the boxes of the one before.

    Every stage has its own predictor with its own classification loss, so that each loss counts its own
    stage. The first stage sees sampled proposals, which Detectron2 labels; a later stage sees the boxes that
    the stage before predicted, matched with a stricter overlap. A box has all labels of the object that it
    matches in its stage.

    In training the losses have the keys ``loss_cls_stage0``, ``loss_box_reg_stage0`` and so on. At test time
    the scores of all stages are averaged, and the boxes are those of the last stage.
    """

    @configurable
    def __init__(
        self,
        *,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        proposal_matchers: Sequence[Matcher],
        box_branches: Sequence[BoxBranch] = (),
        **kwargs: Any,
    ) -> None:
        """Make the heads.

        Args:
            box_heads: per stage.
            box_predictors: per stage, class-agnostic.
            proposal_matchers: per stage; the first one also labels the sampled proposals.
            box_branches: per stage; none for :class:`BoxBranch` in all.
            kwargs: the other arguments of Detectron2's class.

        Raises:
            ConfigError: the numbers of parts differ, or a predictor's boxes are class-specific.
        """
        box_branches = list(box_branches) or [BoxBranch() for _ in box_heads]
        _check_stages(box_predictors, box_heads, proposal_matchers, box_branches)
        super().__init__(
            box_heads=list(box_heads),
            box_predictors=list(box_predictors),
            proposal_matchers=list(proposal_matchers),
            **kwargs,
        )
        self.box_branch = nn.ModuleList(box_branches)
        for stage in range(self.num_cascade_stages):
            self._attached_branch(stage)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        keys, overlaps = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS
        if list(keys.IOUS[:1]) != list(overlaps):
            raise ConfigError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {keys.IOUS}, but proposals are sampled with "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS {overlaps}: the first must be the same"
            )
        stages = [
            {"box2box_transform": Box2BoxTransform(weights=weights)} for weights in keys.BBOX_REG_WEIGHTS
        ]
        return {
            **box_parts_from_config(cfg, input_shape, stages),
            "proposal_matchers": [
                Matcher([overlap], [0, 1], allow_low_quality_matches=False) for overlap in keys.IOUS
            ],
        }

    def _attached_branch(self, stage: int) -> BoxBranch:
        branch: Any = self.box_branch[stage]
        parts: Any = (self.box_pooler, self.box_head[stage], self.box_predictor[stage])  # pyright: ignore
        return branch.attach(*parts)

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        levels = [features[name] for name in self.box_in_features]
        if self.training:  # the stages' losses are summed, their gradients in the features averaged
            levels = [_ScaleGradient.apply(level, 1.0 / self.num_cascade_stages) for level in levels]
        sizes = [image.image_size for image in proposals]
        losses, by_stage, boxes, branch = {}, [], [], None
        for stage in range(self.num_cascade_stages):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            branch = self._attached_branch(stage)
            predictions = branch(levels, proposals)
            boxes = branch.boxes(predictions, proposals)
            if self.training:
                with name_scope(f"stage{stage}"):
                    losses |= with_suffix(branch.losses(predictions, proposals), f"_stage{stage}")
            else:
                by_stage.append(branch.scores(predictions, proposals))
        if self.training or branch is None:
            return losses
        scores = [torch.stack(of_image).mean(dim=0) for of_image in zip(*by_stage, strict=True)]
        return branch.detect(boxes, scores, proposals)

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances] | None
    ) -> list[Instances]:
        """Give each proposal the class, labels and box of the object that it matches in this stage.

        Detectron2's method copies ``gt_classes`` and ``gt_boxes`` only.
        """
        if targets is None:
            raise ValueError("cascade stages need the images' objects in training")
        labels = []
        for image, objects in zip(proposals, targets, strict=True):
            overlaps = pairwise_iou(objects.gt_boxes, image.proposal_boxes)
            matched, label = self.proposal_matchers[stage](overlaps)
            _copy_gt(image, objects, matched, label == 1, self.num_classes)
            labels.append(label)
        if labels and logging_due():
            joined, name = torch.cat(labels), f"stage{stage}/roi_head/num_{{}}_samples"
            counts = {"fg": (joined == 1).sum(), "bg": (joined == 0).sum()}
            log_ratios({name.format(kind): (count, len(labels)) for kind, count in counts.items()})
        return proposals


def _copy_gt(
    image: Instances, objects: Instances, matched: Tensor, foreground: Tensor, num_classes: int
) -> None:
    """Set ``gt_classes`` and, where the image has objects, ``gt_boxes`` and ``gt_labels`` of its proposals.

    Boxes and labels of background proposals are those of some object; `MultiLabelTargets` and the box loss do
    not read them.
    """
    if len(objects) == 0:
        image.gt_classes = torch.full_like(matched, num_classes)
        image.gt_boxes = Boxes(image.proposal_boxes.tensor.clone())
        return
    classes = objects.gt_classes[matched]
    image.gt_classes = torch.where(foreground, classes, torch.full_like(classes, num_classes))
    image.gt_boxes = objects.gt_boxes[matched]
    if objects.has("gt_labels"):
        image.gt_labels = objects.gt_labels[matched]


def _check_stages(predictors: Sequence[nn.Module], *others: Sequence[Any]) -> None:
    counts = [len(parts) for parts in (predictors, *others)]
    if len(set(counts)) != 1 or not counts[0]:
        raise ConfigError(
            "a cascade needs one predictor, head, matcher and branch per stage, got "
            f"{', '.join(map(str, counts))}: MODEL.ROI_BOX_CASCADE_HEAD.IOUS and BBOX_REG_WEIGHTS need one "
            "entry per stage (in a lazy config box_heads, box_predictors, proposal_matchers)"
        )
    for predictor in predictors:
        deltas = getattr(predictor, "bbox_pred", None)
        if isinstance(deltas, nn.Linear) and deltas.out_features != 4:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True for MultiLabelCascadeROIHeads (in a "
                "lazy config cls_agnostic_bbox_reg of each predictor): a stage hands one box per region to "
                "the next"
            )
