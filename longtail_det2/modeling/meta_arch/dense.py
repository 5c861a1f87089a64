"""What RetinaNet and FCOS share: heads with a classification loss, the training step, detection.

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
from torch import Tensor, nn

from longtail_det2.config import NUM_CLASSES_FROM_DATA
from longtail_det2.layers import at_least_float32, checked_kernels
from longtail_det2.modeling.anchor_priors import measured_prior
from longtail_det2.modeling.box_regression import pair_losses
from longtail_det2.modeling.events import event_storage
from longtail_det2.modeling.losses import (
    ClassificationLoss,
    GuidedLossScaling,
    LossNormalizer,
    background_sums,
    build_classification_loss,
    build_guided_loss,
    is_recomputed,
    reduce_losses,
)
from longtail_det2.modeling.score_thresholds import ScoreThresholds, make_adaptive
from longtail_det2.structures.multi_label import DenseTargets
from longtail_det2.utils.errors import ConfigError


def dense_losses(
    loss: ClassificationLoss, logits: Tensor, targets: DenseTargets, kernels: str = "torch"
) -> dict[str, Tensor]:
    """Sum the losses of anchors, almost all of them background, from their logits (R, L).

    Args:
        loss: any.
        logits: (R, L).
        targets: of the same R anchors.
        kernels: see :func:`background_sums`.

    Returns:
        Scalars by name.
    """
    sums, picked = background_sums(loss, logits, targets.background, targets.rows, kernels)
    positive = loss.unreduced(picked, targets.positives)
    return {name: total + positive[name].sum() for name, total in sums.items()}


class MultiLabelDenseHead(nn.Module):
    """Mixin: L logits per anchor and the first bias as the classification loss wants them.

    To be named before Detectron2's head among the bases.
    """

    cls_score: nn.Conv2d

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        classification_loss: ClassificationLoss,
        conv_dims: Sequence[int],
        prior_prob: float | Tensor = 0.01,
        **kwargs: Any,
    ) -> None:
        """Make the layers.

        Args:
            input_shape: of the levels; all have the same channels.
            num_classes: K.
            classification_loss: any; see :meth:`ClassificationLoss.background`.
            conv_dims: channels of the convolutions before the last one, in each of the two branches.
            prior_prob: of foreground before training, see :meth:`ClassificationLoss.bias`.
            kwargs: the other arguments of Detectron2's head.

        Raises:
            ConfigError: the loss was made for another number of classes.
        """
        classification_loss.check_num_classes(num_classes)
        num_logits = classification_loss.num_logits
        super().__init__(
            input_shape=list(input_shape), num_classes=num_logits, conv_dims=list(conv_dims), **kwargs
        )
        self.num_logits = num_logits
        self.classification_loss = classification_loss
        if self.cls_score.bias is not None:
            bias = classification_loss.bias(prior_prob)
            num_anchors = self.cls_score.out_channels // num_logits  # channels are anchor by anchor
            with torch.no_grad():
                self.cls_score.bias.copy_(torch.zeros(()) if bias is None else bias.repeat(num_anchors))


class MultiLabelRetinaNetHead(MultiLabelDenseHead, RetinaNetHead):
    """RetinaNet's head for any classification loss; also needs `num_anchors`, per location."""


class MultiLabelFCOSHead(MultiLabelDenseHead, FCOSHead):
    """FCOS's head for any classification loss."""

    def __init__(self, *, norm: str = "GN", **kwargs: Any) -> None:
        """Make the layers; see :class:`MultiLabelDenseHead`."""
        super().__init__(norm=norm, **kwargs)


class MultiLabelDenseDetector(ScoreThresholds, DenseDetector):
    """A dense detector of Detectron2 whose head has a classification loss.

    To be named before Detectron2's class among the bases. The training step is the same for all: a subclass
    says what its anchors match and which losses it has besides those of classes and boxes.

    Attributes:
        initial_foreground: first value of the moving average that losses are divided by.
        other_widths: numbers per anchor that the head predicts after the logits and the box.
        box_reg_loss_type, smooth_l1_beta: of the box loss, see :func:`pair_losses`.
    """

    head: MultiLabelDenseHead
    anchor_generator: Callable[[list[Tensor]], list[Boxes]]
    box2box_transform: Any
    inference_single_image: Callable[..., Instances]
    initial_foreground: float
    other_widths: tuple[int, ...] = ()
    box_reg_loss_type: str
    smooth_l1_beta: float

    @configurable
    def __init__(
        self,
        *,
        head: MultiLabelDenseHead,
        loss_normalizer: str | LossNormalizer = "foreground_average",
        guided_loss: GuidedLossScaling | None = None,
        box_loss_weight: float = 1.0,
        adaptive_threshold: str = "",
        kernels: str = "torch",
        **kwargs: Any,
    ) -> None:
        """Make the detector.

        Args:
            head: has the classification loss.
            loss_normalizer: what the losses are divided by; a name of :class:`LossNormalizer`, or one.
            guided_loss: scales the classification losses; None for the losses as they are.
            box_loss_weight: of ``loss_box_reg``.
            adaptive_threshold: kind of :class:`AdaptiveThresholds`, counted from the anchors of training; ""
                for `test_score_thresh` alone.
            kernels: "torch" or "triton" (experimental); see :func:`background_sums`.
            kwargs: the other arguments of Detectron2's class; those of its focal loss have no effect.
                `test_score_thresh` may be a number or K numbers.

        Raises:
            ConfigError: unknown `kernels`, or those are not installed.
        """
        super().__init__(head=head, **kwargs)
        if isinstance(loss_normalizer, str):
            loss_normalizer = LossNormalizer(loss_normalizer, initial=self.initial_foreground)
        self.loss_normalizer = loss_normalizer
        self.guided_loss, self.box_loss_weight = guided_loss, box_loss_weight
        self.adaptive_thresholds = make_adaptive(self.num_classes, adaptive_threshold)
        self.kernels = checked_kernels(kernels)

    def match_image(self, anchors: list[Boxes], image: Instances) -> Tensor:
        """Return the index of the object that each anchor matches, (R,) int64.

        `BACKGROUND` stands for background, `IGNORE` for anchors without any loss.

        Args:
            anchors: of each level.
            image: its objects.
        """
        raise NotImplementedError

    def other_losses(self, anchors: Tensor, gt_boxes: Tensor, *others: Tensor) -> dict[str, Tensor]:
        """Return further losses of the positive anchors by name, (P,) each.

        Args:
            anchors: (P, 4).
            gt_boxes: (P, 4), of the objects that they match.
            others: (P, width) for each of `other_widths`, at least float32.
        """
        return {}

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Return the classification losses, ``loss_box_reg`` and :meth:`other_losses` as scalars."""
        by_part = self.split_predictions(predictions)
        logits, *rest = (torch.cat(levels, dim=1).flatten(0, 1) for levels in by_part)  # image by image
        anchors = self.anchor_generator(features)
        targets, gt_boxes = self.label_objects(anchors, gt_instances)
        positives = len(targets.rows)
        if storage := event_storage():
            storage.put_scalar("num_pos_anchors", positives / max(len(gt_instances), 1))
        count = torch.full((), positives, device=logits.device)
        divisor, box_divisor = self.loss_normalizer(len(targets), count, self.num_classes)

        loss = self.head.classification_loss
        if torch.is_grad_enabled() and not is_recomputed():
            loss.update(targets.positives)
            if self.adaptive_thresholds is not None:
                self.adaptive_thresholds.update(targets.positives, (targets.classes >= 0).sum())
        classes = dense_losses(loss, logits, targets, self.kernels)
        of_image = Boxes.cat(list(anchors)).tensor
        boxes = of_image[targets.rows % max(len(of_image), 1)]
        deltas, *others = (at_least_float32(values[targets.rows]) for values in rest)
        box_loss = self.box2box_transform, self.box_reg_loss_type, self.smooth_l1_beta
        regression = {"loss_box_reg": pair_losses(boxes, gt_boxes, deltas, *box_loss)}
        regression |= self.other_losses(boxes, gt_boxes, *others)
        losses = reduce_losses(classes, divisor)
        guides = reduce_losses(regression, box_divisor, {"loss_box_reg": self.box_loss_weight})
        return losses | guides if self.guided_loss is None else self.guided_loss(losses, guides)

    @torch.no_grad()
    def label_objects(
        self, anchors: Sequence[Boxes], objects: Sequence[Instances]
    ) -> tuple[DenseTargets, Tensor]:
        """Return the targets of all images' anchors, and (P, 4) the boxes that the positive ones match."""
        matches = [self.match_image(list(anchors), image) for image in objects]
        return DenseTargets.from_matches(matches, objects, self.num_classes)

    def split_predictions(self, predictions: list[list[Tensor]]) -> list[list[Tensor]]:
        """Return per level logits (N, Ri, L), deltas (N, Ri, 4), and (N, Ri, width) of the others."""
        return self._transpose_dense_predictions(predictions, [self.head.num_logits, 4, *self.other_widths])

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: Tensor | float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """Return the best candidates of a level; as Detectron2's method, in memory that is bounded.

        Thresholds may let everything pass: Detectron2 would list all (anchor, class) pairs then.
        """
        width, parts = pred_scores.shape[1], []
        step = max(_PAIRS_AT_ONCE // width, 1)
        for start in range(0, len(pred_scores), step):
            some = pred_scores[start : start + step]
            (places,) = (some > score_thresh).flatten().nonzero(as_tuple=True)
            parts.append(_best(some.flatten()[places], places + start * width, topk_candidates))
        scores, places = (torch.cat(values) for values in zip(*parts, strict=True))
        scores, places = _best(scores, places, topk_candidates)
        scores, order = scores.sort(descending=True)
        rows, classes = places[order] // width, places[order] % width
        boxes = self.box2box_transform.apply_deltas(pred_deltas[rows], anchors.tensor[rows])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def scores(self, logits: Tensor, *others: Tensor) -> Tensor:
        """Return the scores of the anchors of a level of an image, which the thresholds are compared with.

        Args:
            logits: (Ri, L).
            others: (Ri, width) for each of `other_widths`.

        Returns:
            (Ri, K) in [0, 1].
        """
        return self.head.classification_loss.scores(logits)[:, :-1]

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Return the detections per image, scored by :meth:`scores`."""
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


_PAIRS_AT_ONCE = 1 << 22
"""(Anchor, class) pairs that are compared with the thresholds at once."""


def _best(scores: Tensor, places: Tensor, number: int) -> tuple[Tensor, Tensor]:
    if len(scores) <= number:
        return scores, places
    scores, best = scores.topk(number)
    return scores, places[best]


def dense_arguments(
    cfg: CfgNode,
    keys: CfgNode,
    backbone: Backbone,
    make_head: Callable[..., nn.Module],
    num_losses: int = 2,
    **options: Any,
) -> dict[str, Any]:
    """Return the arguments that RetinaNet and FCOS share.

    Args:
        cfg: the whole config.
        keys: the detector's own node.
        backbone: built before the head, which takes the next random numbers.
        make_head: the head's class.
        num_losses: 1 for classification, and 1 for each other loss.
        options: further arguments for it.

    Raises:
        ConfigError: ``MODEL.RETINANET.NUM_CLASSES`` is not the number of classes, or ``DATASETS.STATISTICS``
            has anchors of other settings.
    """
    shapes, num_classes = level_shapes(backbone, keys), _checked_num_classes(cfg)
    own = cfg.MODEL.DENSE_HEAD
    prior = None if own.PRIOR == "fixed" else measured_prior(cfg, own.PRIOR)
    head = make_head(
        input_shape=shapes,
        num_classes=num_classes,
        classification_loss=build_classification_loss(
            cfg, num_classes, key="MODEL.DENSE_HEAD.CLASSIFICATION_LOSS"
        ),
        conv_dims=[shapes[0].channels or 0] * keys.NUM_CONVS,
        norm=keys.NORM,
        prior_prob=cfg.MODEL.RETINANET.PRIOR_PROB if prior is None else prior,
        **options,
    )
    return {
        "backbone": backbone,
        "head": head,
        "num_classes": num_classes,
        "head_in_features": keys.IN_FEATURES,
        "loss_normalizer": own.LOSS_NORMALIZER,
        "guided_loss": build_guided_loss(own, num_losses),
        "box_loss_weight": own.BBOX_REG_LOSS_WEIGHT,
        "adaptive_threshold": own.ADAPTIVE_THRESHOLD,
        "kernels": cfg.MODEL.KERNELS,
        "test_score_thresh": keys.SCORE_THRESH_TEST,
        "test_topk_candidates": keys.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": keys.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def level_shapes(backbone: Backbone, keys: CfgNode) -> list[ShapeSpec]:
    """Return the shapes of the levels that ``IN_FEATURES`` of a detector's node names."""
    return [backbone.output_shape()[name] for name in keys.IN_FEATURES]


def _checked_num_classes(cfg: CfgNode) -> int:
    common, own = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES
    if own not in (NUM_CLASSES_FROM_DATA, common):
        raise ConfigError(
            f"MODEL.RETINANET.NUM_CLASSES is {own}, but MODEL.ROI_HEADS.NUM_CLASSES, which holds for every "
            f"detector, is {common}: set MODEL.RETINANET.NUM_CLASSES to {NUM_CLASSES_FROM_DATA}"
        )
    return common
