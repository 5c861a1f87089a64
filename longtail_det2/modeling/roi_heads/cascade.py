"""Cascade R-CNN (Cai and Vasconcelos 2018) for regions with several labels.

Shape shorthand in this module:

    S: number of cascade stages
    N: number of images in the minibatch; Ri: number of RoIs of image i
    K: number of foreground classes; background is class K and the last column
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from longtail_det2.modeling.events import event_storage
from longtail_det2.utils.errors import ConfigError

from .box_regression import keep_top_candidates
from .fast_rcnn import MultiLabelFastRCNNOutputLayers
from .roi_heads import build_box_pooler

Stage = tuple[MultiLabelFastRCNNOutputLayers, tuple[Tensor, Tensor], list[Instances]]
"""What a stage leaves behind: its predictor, what that predicted, and the proposals it looked at."""


@ROI_HEADS_REGISTRY.register()
class MultiLabelCascadeROIHeads(CascadeROIHeads):
    """S box heads in a row, each refining the boxes of the one before; a region has all labels of its object.

    Every stage has its own predictor and in it its own classification loss, so that what a loss counts is
    counted for each stage. The first stage sees sampled proposals, which Detectron2 labels; the later ones
    see the boxes that the stage before predicted, matched anew with a stricter overlap. A box takes the
    labels of the object that it matches *then*.

    In training the losses have the keys ``loss_cls_stage0``, ``loss_box_reg_stage0`` and so on. At test time
    the scores of all stages, each read by its own loss's activation, are averaged, and the boxes are the last
    stage's.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # Not by way of Detectron2's method: that would make predictors of its own, which cost random numbers,
        # and the same seed would give other weights than in a lazy config.
        overlaps = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        transforms = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        _check_cascade_keys(cfg)
        features, pooler, pooled_shape = build_box_pooler(cfg, input_shape)
        heads = [build_box_head(cfg, pooled_shape) for _ in overlaps]
        predictors = [
            MultiLabelFastRCNNOutputLayers(
                cfg,
                head.output_shape,  # pyright: ignore[reportCallIssue]
                box2box_transform=Box2BoxTransform(weights=weights),
            )
            for head, weights in zip(heads, transforms, strict=True)
        ]
        return {
            "box_in_features": features,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": predictors,
            "proposal_matchers": [
                Matcher([overlap], [0, 1], allow_low_quality_matches=False) for overlap in overlaps
            ],
        }

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        stages = self._run_stages(features, proposals, targets)
        return self._losses(stages) if self.training else self._detections(stages)

    def _run_stages(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances] | None
    ) -> list[Stage]:
        levels = [features[name] for name in self.box_in_features]
        sizes = [image.image_size for image in proposals]
        stages: list[Stage] = []
        for index in range(self.num_cascade_stages):
            if stages:
                predictor, predictions, before = stages[-1]
                boxes = predictor.predict_boxes(predictions, before)
                proposals = self._create_proposals_from_boxes(boxes, sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, index, targets)
            predictions = self._run_stage(levels, proposals, index)
            stages.append((self.box_predictor[index], predictions, proposals))
        return stages

    def _losses(self, stages: Sequence[Stage]) -> dict[str, Tensor]:
        storage = event_storage()
        losses: dict[str, Tensor] = {}
        for index, (predictor, predictions, proposals) in enumerate(stages):
            with storage.name_scope(f"stage{index}") if storage else contextlib.nullcontext():
                found = predictor.losses(predictions, proposals)
            losses.update({f"{name}_stage{index}": value for name, value in found.items()})
        return losses

    def _detections(self, stages: Sequence[Stage]) -> list[Instances]:
        by_stage = [predictor.predict_probs(predictions, boxes) for predictor, predictions, boxes in stages]
        predictor, predictions, proposals = stages[-1]
        scores = [
            keep_top_candidates(torch.stack(of_image).mean(dim=0), predictor.test_pre_nms_topk)
            for of_image in zip(*by_stage, strict=True)
        ]
        found, _ = fast_rcnn_inference(
            list(predictor.predict_boxes(predictions, proposals)),
            scores,
            [image.image_size for image in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return found

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances] | None
    ) -> list[Instances]:
        """The proposals with the class, labels and box of the object that each matches at this stage.

        Detectron2's method hands on ``gt_classes`` and ``gt_boxes`` only.
        """
        if targets is None:
            raise ValueError("cascade stages need the images' objects in training")
        counts = []
        for image, objects in zip(proposals, targets, strict=True):
            overlaps = pairwise_iou(objects.gt_boxes, image.proposal_boxes)
            matched, label = self.proposal_matchers[stage](overlaps)
            _copy_truth(image, objects, matched, label == 1, self.num_classes)
            counts.append(torch.stack([(label == 1).sum(), (label == 0).sum()]))
        self._log_samples(counts, stage)
        return proposals

    def _log_samples(self, counts: list[Tensor], stage: int) -> None:
        """Foreground and background boxes an image, as Detectron2 logs them; read once for both."""
        storage = event_storage()
        if storage is None or not counts:
            return
        foreground, background = torch.stack(counts).float().mean(dim=0).tolist()
        storage.put_scalar(f"stage{stage}/roi_head/num_fg_samples", foreground)
        storage.put_scalar(f"stage{stage}/roi_head/num_bg_samples", background)


def _copy_truth(
    image: Instances, objects: Instances, matched: Tensor, foreground: Tensor, num_classes: int
) -> None:
    """Sets ``gt_classes`` and, where the image has objects, ``gt_boxes`` and ``gt_labels`` of its proposals.

    Rows of background proposals carry the truth of some object in the latter two; `MultiLabelTargets` and the
    box loss do not read them.
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


def _check_cascade_keys(cfg: CfgNode) -> None:
    keys = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    if len(keys.IOUS) != len(keys.BBOX_REG_WEIGHTS) or not keys.IOUS:
        raise ConfigError(
            "MODEL.ROI_BOX_CASCADE_HEAD needs one entry a stage in both IOUS and BBOX_REG_WEIGHTS, got "
            f"{len(keys.IOUS)} and {len(keys.BBOX_REG_WEIGHTS)}"
        )
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True for MultiLabelCascadeROIHeads: a stage "
            "hands one box a region to the next"
        )
    if keys.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS begins with {keys.IOUS[0]}, but proposals are sampled with "
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS {list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)}: make them equal"
        )
