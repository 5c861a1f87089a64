"""What RetinaNet and FCOS share: heads that ask their loss, detectors around them, losses, the normaliser.

Shape shorthand in this package:

    N: number of images in the minibatch
    R: number of anchors of an image, over all levels; A: at one location
    P: number of positive anchors of the minibatch
    K: number of foreground classes
    L: number of logits of the classification loss
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.config import NUM_CLASSES_FROM_DATA
from longtail_det2.layers import at_least_float32
from longtail_det2.modeling.events import event_storage
from longtail_det2.modeling.losses import (
    ClassificationLoss,
    build_classification_loss,
    check_serves_dense_heads,
)
from longtail_det2.modeling.roi_heads.box_regression import pair_losses
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.utils.errors import ConfigError


class MultiLabelRetinaNetHead(RetinaNetHead):
    """RetinaNet's head with the L logits an anchor and the first bias that its classification loss wants."""

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        classification_loss: ClassificationLoss,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm: str = "",
    ) -> None:
        """Makes the layers.

        Args:
            input_shape: of the levels; all have the same channels.
            num_classes: K.
            classification_loss: one that serves dense heads.
            num_anchors: A.
            conv_dims: channels of the convolutions before the last one, in each of the two branches.
            norm: their normalisation, as Detectron2 names it.

        Raises:
            ConfigError: the loss cannot serve a dense head, or K is not positive.
        """
        num_logits = _checked_num_logits(classification_loss, num_classes)
        super().__init__(
            input_shape=list(input_shape),
            num_classes=num_logits,
            num_anchors=num_anchors,
            conv_dims=list(conv_dims),
            norm=norm,
        )
        self.num_logits = num_logits
        self.classification_loss = classification_loss
        _set_bias(self.cls_score, classification_loss.dense_bias(num_logits), num_anchors)


class MultiLabelFCOSHead(FCOSHead):
    """FCOS's head with the L logits a location, and the first bias, that its classification loss wants."""

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        classification_loss: ClassificationLoss,
        conv_dims: Sequence[int],
        norm: str = "GN",
    ) -> None:
        """Makes the layers; see :class:`MultiLabelRetinaNetHead`."""
        num_logits = _checked_num_logits(classification_loss, num_classes)
        super().__init__(
            input_shape=list(input_shape), num_classes=num_logits, conv_dims=list(conv_dims), norm=norm
        )
        self.num_logits = num_logits
        self.classification_loss = classification_loss
        _set_bias(self.cls_score, classification_loss.dense_bias(num_logits), num_anchors=1)


def _checked_num_logits(loss: ClassificationLoss, num_classes: int) -> int:
    if num_classes < 1:
        raise ConfigError(f"a dense head needs at least one class, got num_classes={num_classes}")
    check_serves_dense_heads(loss)
    return loss.num_logits(num_classes)


def _set_bias(layer: nn.Conv2d, bias: Tensor | None, num_anchors: int) -> None:
    """One bias an anchor and logit; the layer's channels are anchor by anchor."""
    if layer.bias is None:
        return
    with torch.no_grad():
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias.repeat(num_anchors))


class MultiLabelDenseDetector(DenseDetector):
    """What a dense detector of Detectron2 becomes when its head has a classification loss.

    To be named before Detectron2's class among the bases.

    Attributes:
        initial_positives: where the average of positive anchors starts that losses are divided by.
        other_widths: numbers an anchor that the head predicts after the logits and the box.
    """

    head: MultiLabelRetinaNetHead | MultiLabelFCOSHead
    anchor_generator: Callable[[list[Tensor]], list[Boxes]]
    inference_single_image: Callable[..., Instances]
    initial_positives: float
    other_widths: tuple[int, ...] = ()

    @configurable
    def __init__(self, *, head: MultiLabelRetinaNetHead | MultiLabelFCOSHead, **kwargs: Any) -> None:
        """Makes the detector.

        Args:
            head: it has the classification loss.
            kwargs: the other arguments of Detectron2's class; those of its focal loss have no effect.
        """
        super().__init__(head=head, **kwargs)
        self.loss_normalizer = PositivesAverage(initial=self.initial_positives)

    def split_predictions(self, predictions: list[list[Tensor]]) -> list[list[Tensor]]:
        """What the head predicts, of each level: logits (N, Ri, L), deltas (N, Ri, 4), and the others."""
        return self._transpose_dense_predictions(predictions, [self.head.num_logits, 4, *self.other_widths])

    def scores(self, logits: Tensor, *others: Tensor) -> Tensor:
        """Scores of the anchors of a level of an image.

        Args:
            logits: (Ri, L).
            others: (Ri, width) for each of `other_widths`.

        Returns:
            (Ri, K) in [0, 1]: the classification loss's activation.
        """
        return self.head.classification_loss.activation(logits)[:, :-1]

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detections of each image, scored by :meth:`scores`."""
        logits, deltas, *others = self.split_predictions(predictions)
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(
                anchors,
                [
                    self.scores(*(values[index] for values in level))
                    for level in zip(logits, *others, strict=True)
                ],
                [level[index] for level in deltas],
                size,
            )
            for index, size in enumerate(images.image_sizes)
        ]


def level_shapes(backbone: Backbone, names: Sequence[str]) -> list[ShapeSpec]:
    """Shapes of the features that a head looks at."""
    return [backbone.output_shape()[name] for name in names]


def dense_arguments(
    cfg: CfgNode, keys: CfgNode, backbone: Backbone, make_head: Callable[..., nn.Module], **options: Any
) -> dict[str, Any]:
    """The arguments that RetinaNet and FCOS share, from a config.

    Args:
        cfg: the whole config; the loss is that of ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS``.
        keys: the detector's own node.
        backbone: built before the head, which takes the next random numbers.
        make_head: the head's class.
        options: further arguments for it.
    """
    shapes = level_shapes(backbone, keys.IN_FEATURES)
    head = make_head(
        input_shape=shapes,
        num_classes=dense_num_classes(cfg),
        classification_loss=build_dense_loss(cfg),
        conv_dims=[shapes[0].channels or 0] * keys.NUM_CONVS,
        norm=keys.NORM,
        **options,
    )
    return {
        "backbone": backbone,
        "head": head,
        "num_classes": dense_num_classes(cfg),
        "head_in_features": keys.IN_FEATURES,
        "test_score_thresh": keys.SCORE_THRESH_TEST,
        "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": keys.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def dense_num_classes(cfg: CfgNode) -> int:
    """The number of classes of a dense detector, ``MODEL.ROI_HEADS.NUM_CLASSES``.

    Raises:
        ConfigError: ``MODEL.RETINANET.NUM_CLASSES`` says another one.
    """
    common, own = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES
    if own not in (NUM_CLASSES_FROM_DATA, common):
        raise ConfigError(
            f"MODEL.RETINANET.NUM_CLASSES is {own}, but MODEL.ROI_HEADS.NUM_CLASSES, which holds for every "
            f"detector, is {common}: set the latter and leave the former at {NUM_CLASSES_FROM_DATA}"
        )
    return common


def build_dense_loss(cfg: CfgNode) -> ClassificationLoss:
    """The loss that ``MODEL.DENSE_HEAD.CLASSIFICATION_LOSS`` names."""
    return build_classification_loss(cfg, dense_num_classes(cfg), key="MODEL.DENSE_HEAD.CLASSIFICATION_LOSS")


class PositivesAverage(nn.Module):
    """Moving average of the number of positive anchors of a batch, which dense losses are divided by.

    average <- 0.9 average + 0.1 max(positives, 1), as in Detectron2. Two things differ: it is a buffer, so
    that a resumed run goes on with it, and it counts the positives of all ranks and is divided by the number
    of ranks, so that several processes with a part of the batch each train as one with the whole.
    """

    average: Tensor

    def __init__(self, initial: float, momentum: float = 0.9) -> None:
        """Makes the average.

        Args:
            initial: where it starts.
            momentum: weight of the past, in [0, 1).
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    @torch.no_grad()
    def forward(self, positives: int) -> Tensor:
        """Takes this rank's number into the average.

        Args:
            positives: in this rank's part of the batch.

        Returns:
            Scalar that this rank divides its sums by.
        """
        count = torch.full_like(self.average, float(positives))
        ranks = comm.get_world_size()
        if ranks > 1:
            torch.distributed.all_reduce(count)
        self.average.mul_(self.momentum).add_(count.clamp(min=1), alpha=1 - self.momentum)
        return self.average / ranks


def flat_levels(levels: Sequence[Tensor]) -> Tensor:
    """(N, Ri, D) of each level to (N R, D), images one after the other."""
    return torch.cat(list(levels), dim=1).flatten(0, 1)


def dense_class_and_box_losses(
    head: MultiLabelRetinaNetHead | MultiLabelFCOSHead,
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Boxes],
    targets: DenseTargets,
    matched_boxes: Tensor,
    normalizer: Tensor,
    **box_loss: Any,
) -> dict[str, Tensor]:
    """The classification loss's scalars and ``loss_box_reg``.

    Args:
        head: asked for its loss.
        logits: of each level, (N, Ri, L).
        deltas: of each level, (N, Ri, 4).
        anchors: of each level.
        targets: of the N R anchors.
        matched_boxes: (P, 4), of the objects that the positive anchors matched.
        normalizer: scalar.
        box_loss: ``transform``, ``loss_type`` and ``smooth_l1_beta`` of the box loss.
    """
    losses = dict(head.classification_loss.dense_loss(flat_levels(logits), targets, normalizer))
    chosen = at_least_float32(flat_levels(deltas)[targets.rows])
    boxes = positive_anchors(anchors, targets)
    losses["loss_box_reg"] = pair_losses(boxes, matched_boxes, chosen, **box_loss).sum() / normalizer
    return losses


def positive_anchors(anchors: Sequence[Boxes], targets: DenseTargets) -> Tensor:
    """(P, 4), the boxes of the positive anchors."""
    of_image = Boxes.cat(list(anchors)).tensor
    return of_image[targets.rows % max(len(of_image), 1)]


def log_positives(count: int, images: int) -> None:
    """The number of positive anchors an image, under Detectron2's name."""
    storage = event_storage()
    if storage is not None:
        storage.put_scalar("num_pos_anchors", count / max(images, 1))
