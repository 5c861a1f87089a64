"""FCOS (Tian et al. 2019) whose locations have all labels of the object that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32
from longtail_det2.structures.dense_targets import MATCHED_NOTHING, DenseTargets

from .dense import (
    MultiLabelDenseDetector,
    MultiLabelFCOSHead,
    dense_arguments,
    dense_class_and_box_losses,
    flat_levels,
    log_positives,
    positive_anchors,
)


@META_ARCH_REGISTRY.register()
class MultiLabelFCOS(MultiLabelDenseDetector, FCOS):
    """FCOS with any classification loss that serves dense heads, and multi-label truth.

    A location belongs to the smallest object whose middle it lies in, at the level of the object's size. At
    test time a class's score is the square root of its activation times the centerness. With
    :class:`SigmoidFocalLoss` and one label an object this is Detectron2's FCOS; see
    :class:`PositivesAverage` for what the losses are divided by. The losses are the classification loss's,
    ``loss_box_reg`` (generalised IoU) and ``loss_centerness``.
    """

    initial_positives = 300.0
    other_widths = (1,)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads ``MODEL.FCOS`` and ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS``."""
        keys = cfg.MODEL.FCOS
        return {
            **dense_arguments(cfg, keys, build_backbone(cfg), MultiLabelFCOSHead),
            "center_sampling_radius": keys.CENTER_SAMPLING_RADIUS,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The classification loss's scalars, ``loss_box_reg`` and ``loss_centerness``."""
        logits, deltas, centerness = self.split_predictions(predictions)
        anchors = self.anchor_generator(features)
        targets, boxes = self.label_objects(anchors, gt_instances)
        log_positives(len(targets.rows), len(gt_instances))
        normalizer = self.loss_normalizer(len(targets.rows))
        losses = dense_class_and_box_losses(
            self.head,
            logits,
            deltas,
            anchors,
            targets,
            boxes,
            normalizer,
            transform=self.box2box_transform,
            loss_type="giou",
            smooth_l1_beta=0.0,
        )
        distances = self.box2box_transform.get_deltas(positive_anchors(anchors, targets), boxes)
        found = at_least_float32(flat_levels(centerness)[targets.rows, 0])
        with torch.autocast(found.device.type, enabled=False):
            wanted = centerness_of(distances).to(found.dtype)
            total = F.binary_cross_entropy_with_logits(found, wanted, reduction="sum")
        losses["loss_centerness"] = total / normalizer
        return losses

    @torch.no_grad()
    def label_objects(
        self, anchors: Sequence[Boxes], objects: Sequence[Instances]
    ) -> tuple[DenseTargets, Tensor]:
        """Targets of the locations of all images, and (P, 4) the boxes that the positive ones matched."""
        matches = [self._match_image(list(anchors), image) for image in objects]
        return DenseTargets.from_matches(matches, objects, self.num_classes)

    def _match_image(self, anchors: list[Boxes], image: Instances) -> Tensor:
        if len(image) == 0:
            count = sum(len(level) for level in anchors)
            return torch.full((count,), MATCHED_NOTHING, dtype=torch.int64, device=anchors[0].device)
        if hasattr(self, "match_anchors"):
            return self.match_anchors(anchors, [image])[0]
        # Newer versions of Detectron2 match one image, and say how well instead of -1.
        quality = self._match_anchors(image.gt_boxes, anchors)  # pyright: ignore
        best, index = quality.max(dim=0)
        return torch.where(best < 1e-5, MATCHED_NOTHING, index)

    def scores(self, logits: Tensor, *others: Tensor) -> Tensor:
        """The square root of the activation times the centerness, (Ri, 1) logits."""
        return torch.sqrt(super().scores(logits) * at_least_float32(others[0]).sigmoid())


def centerness_of(distances: Tensor) -> Tensor:
    """How far in the middle a location lies: sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)).

    Args:
        distances: (P, 4) from the location to the left, top, right and bottom edge; all positive.

    Returns:
        (P,) in [0, 1] (Tian et al. 2019, equation 3).
    """
    horizontal, vertical = distances[:, [0, 2]], distances[:, [1, 3]]
    ratio = (horizontal.amin(dim=1) / horizontal.amax(dim=1)) * (vertical.amin(dim=1) / vertical.amax(dim=1))
    return ratio.sqrt()
