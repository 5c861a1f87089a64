"""The mask head of Mask R-CNN (He et al. 2017) for regions with several labels.

Shape shorthand in this module:

    N: number of images in the minibatch
    R: number of foreground RoIs, combined over all images
    C: number of mask channels: K, one for each foreground class, or 1 if masks are class-agnostic
    S: side of a predicted mask in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
)
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.modeling.events import log_ratios, logging_due
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets

from .classifiers import MakeLayer, build_mask_predictor


@ROI_MASK_HEAD_REGISTRY.register()
class MultiLabelMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's convolutional mask head, trained on the channels of all labels per region.

    At test time each detection takes the mask from its own class's channel, so a class that is only ever a
    second label or an ancestor ("vehicle") must have learned masks too. Regions whose object has no mask
    (``gt_has_mask`` False) have no mask loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        predictor: MakeLayer | None = None,
        batch_size_per_image: int = 0,
        **kwargs: Any,
    ) -> None:
        """Make the layers.

        Args:
            input_shape: of the features per region.
            num_classes: C.
            conv_dims: channels of the convolutions, the last one of the deconvolution.
            predictor: called with (channels, C), returns the last layer, see :func:`build_mask_predictor`;
                None keeps Detectron2's.
            batch_size_per_image: at most so many regions per image, on average, are trained on, drawn from
                all of the batch; 0 for no bound.
            kwargs: the other arguments of Detectron2's class.
        """
        super().__init__(input_shape, conv_dims=list(conv_dims), num_classes=num_classes, **kwargs)
        if predictor is not None:
            self.predictor = predictor(conv_dims[-1], num_classes)
        self.batch_size_per_image = batch_size_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read Detectron2's keys and this project's of ``MODEL.ROI_MASK_HEAD``."""
        keys = cfg.MODEL.ROI_MASK_HEAD
        arguments = super().from_config(cfg, input_shape)
        arguments["batch_size_per_image"] = keys.BATCH_SIZE_PER_IMAGE
        if keys.PREDICTOR != "Conv2d":
            arguments["predictor"] = build_mask_predictor(keys.PREDICTOR, keys.TEMPERATURE)
        return arguments

    def forward(
        self,
        x: Tensor,
        instances: list[Instances],
    ) -> dict[str, Tensor] | list[Instances]:
        """Return losses in training, else the instances with ``pred_masks`` (n, 1, S, S) probabilities.

        Args:
            x: (R, channels, height, width) features of the regions.
            instances: of N images. In training foreground proposals with ``proposal_boxes``, ``gt_classes``,
                ``gt_masks`` and, where objects have them, ``gt_labels`` and ``gt_has_mask``; else detections
                with ``pred_classes``.
        """
        limit = self.batch_size_per_image * len(instances)
        if self.training and 0 < limit < len(x):
            chosen: Any = torch.randperm(len(x), device=x.device) < limit
            of_image = chosen.split([len(image) for image in instances])
            x, instances = x[chosen], [image[own] for image, own in zip(instances, of_image, strict=True)]
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": multi_label_mask_loss(logits, instances) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances


def multi_label_mask_loss(logits: Tensor, proposals: Sequence[Instances]) -> Tensor:
    """Return the binary cross entropy between predicted and gt masks, averaged over the labels per region.

    With P_r the positive labels of region r, m its mask and z_rc the logits of channel c::

        L = 1 / R * sum_r 1 / |P_r| * sum_{c in P_r} mean_pixels BCE(z_rc, m_r)

    where R counts the regions whose object has a mask. With one label per region this is Mask R-CNN's loss;
    with one channel for all classes the sum over P_r has one term.

    Args:
        logits: (R, C, S, S).
        proposals: foreground proposals of N images, R together, see :meth:`MultiLabelMaskHead.forward`.

    Returns:
        A scalar; 0, attached to the graph, where no region has a mask.
    """
    proposals = [image for image in proposals if len(image)]
    if not proposals:
        return logits.sum() * 0
    side = logits.shape[-1]
    masks = cat(
        [image.gt_masks.crop_and_resize(image.proposal_boxes.tensor, side) for image in proposals]
    ).to(logits.device, torch.float32)
    weights = _region_weights(proposals, logits.device)
    if logits.shape[1] == 1:
        rows = torch.arange(len(logits), device=logits.device)
        channels = torch.zeros_like(rows)
    else:
        targets = MultiLabelTargets.from_proposals(proposals, logits.shape[1]).to(logits.device)
        positive = targets.labels[:, :-1] == POSITIVE
        rows, channels = positive.nonzero(as_tuple=True)
        weights = weights / positive.sum(dim=1).clamp(min=1)
    chosen, masks, weights = logits[rows, channels], masks[rows], weights[rows]
    per_label = F.binary_cross_entropy_with_logits(chosen, masks, reduction="none").mean(dim=(1, 2))
    if logging_due():
        right = ((chosen.detach() > 0) == (masks > 0.5)).float().mean(dim=(1, 2))
        log_ratios({"mask_rcnn/accuracy": ((right * weights).sum(), weights.sum())})
    return (per_label * weights).sum()


def _region_weights(proposals: Sequence[Instances], device: torch.device) -> Tensor:
    """Return (R,): 1 / number of regions with a mask where there is one, 0 elsewhere."""
    has_mask = cat([_has_mask(image) for image in proposals]).to(device)
    return has_mask / has_mask.sum().clamp(min=1)


def _has_mask(image: Instances) -> Tensor:
    if image.has("gt_has_mask"):
        return image.gt_has_mask
    return torch.ones_like(image.gt_classes, dtype=torch.bool)
