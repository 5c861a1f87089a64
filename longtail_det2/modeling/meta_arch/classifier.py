"""A classifier of images that have several labels: backbone, average pooling, neck, classification loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from fvcore.nn import weight_init
from torch import Tensor, nn

from longtail_det2.modeling.losses import (
    ClassificationLoss,
    LossNormalizer,
    build_classification_loss,
    is_recomputed,
    reduce_losses,
)
from longtail_det2.modeling.roi_heads.classifiers import (
    MakeLayer,
    build_classifier,
    initialize_classifier,
)
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError


@META_ARCH_REGISTRY.register()
class MultiLabelClassifier(nn.Module):
    """Scores of K classes for whole images, with any classification loss whose rows are images.

    Features are averaged over each image without its padding. The neck is that of Wu et al. (ECCV 2020):
    fully connected, batch normalisation, dropout, no activation.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        classification_loss: ClassificationLoss,
        in_features: Sequence[str] = ("res5",),
        fc_dim: int = 256,
        dropout: float = 0.5,
        classifier: MakeLayer = nn.Linear,
        loss_normalizer: str | LossNormalizer = "elements",
        prior_prob: float = 0.5,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        """Make the layers.

        Args:
            backbone: of the features.
            num_classes: K.
            classification_loss: any, see :class:`ClassificationLoss`.
            in_features: levels of the backbone, whose averages are joined.
            fc_dim: width of the neck; 0: none, the averages are classified.
            dropout: share of the classified features that are 0 in training, in [0, 1).
            classifier: makes the last layer, see :func:`build_classifier`.
            loss_normalizer: what the losses are divided by, a name of :class:`LossNormalizer`, or one.
            prior_prob: score of every class before training.
            pixel_mean: of each channel.
            pixel_std: likewise.

        Raises:
            ConfigError: a level that the backbone does not have, the loss was made for another number of
                classes, or `fc_dim` or `dropout` is out of range.
        """
        super().__init__()
        classification_loss.check_num_classes(num_classes)
        shapes = backbone.output_shape()
        if not in_features or not set(in_features) <= set(shapes):
            raise ConfigError(
                f"MODEL.IMAGE_HEAD.IN_FEATURES is {list(in_features)}; the backbone has {list(shapes)}"
            )
        if fc_dim < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                f"MODEL.IMAGE_HEAD: FC_DIM {fc_dim} must not be negative, DROPOUT {dropout} be in [0, 1)"
            )
        self.backbone, self.num_classes = backbone, num_classes
        self.in_features = tuple(in_features)
        self.strides = [shapes[name].stride or 1 for name in in_features]
        width = sum(shapes[name].channels or 0 for name in in_features)
        layers: list[nn.Module] = []
        if fc_dim:
            layers += [nn.Linear(width, fc_dim), nn.BatchNorm1d(fc_dim)]
            weight_init.c2_msra_fill(layers[0])  # pyright: ignore[reportArgumentType]
        self.neck = nn.Sequential(*layers, nn.Dropout(dropout))
        self.classifier = classifier(fc_dim or width, classification_loss.num_logits)
        initialize_classifier(self.classifier, classification_loss.bias(prior_prob))
        self.classification_loss = classification_loss
        if isinstance(loss_normalizer, str):
            loss_normalizer = LossNormalizer(loss_normalizer)
        self.loss_normalizer = loss_normalizer
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.IMAGE_HEAD``; raises ConfigError where ``INPUT.IMAGE_LEVEL`` is False."""
        if not cfg.INPUT.IMAGE_LEVEL:
            raise ConfigError(
                "MultiLabelClassifier learns labels of whole images: set INPUT.IMAGE_LEVEL True"
            )
        keys, num_classes = cfg.MODEL.IMAGE_HEAD, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {
            "backbone": build_backbone(cfg),
            "num_classes": num_classes,
            "classification_loss": build_classification_loss(
                cfg, num_classes, key="MODEL.IMAGE_HEAD.CLASSIFICATION_LOSS"
            ),
            "in_features": keys.IN_FEATURES,
            "fc_dim": keys.FC_DIM,
            "dropout": keys.DROPOUT,
            "classifier": build_classifier(keys.CLASSIFIER, keys.TEMPERATURE),
            "loss_normalizer": keys.LOSS_NORMALIZER,
            "prior_prob": keys.PRIOR_PROB,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Train on a batch, or score one.

        Args:
            batched_inputs: per image ``image`` (C, H, W) and, in training, ``gt_labels`` (K,) int8 in
                {1, 0, -1}; see :class:`MultiLabelDatasetMapper`.

        Returns:
            In training the losses as scalars by name; else per image ``scores`` (K,).

        Raises:
            ConfigError: in training, images without labels, or a single image where there is a neck.
        """
        if not self.training:
            scores = self.classification_loss.scores(self.logits(batched_inputs))[:, :-1]
            return [{"scores": of_image} for of_image in scores]
        if any("gt_labels" not in one for one in batched_inputs):
            raise ConfigError(
                "images come without gt_labels: MultiLabelClassifier needs INPUT.IMAGE_LEVEL (image_level of "
                "the mapper in a lazy config)"
            )
        if len(batched_inputs) < 2 and len(self.neck) > 1:
            raise ConfigError(
                "batch normalisation of MODEL.IMAGE_HEAD needs at least two images in each process: raise "
                "SOLVER.IMS_PER_BATCH, or set MODEL.IMAGE_HEAD.FC_DIM 0"
            )
        labels = torch.stack([one["gt_labels"] for one in batched_inputs]).to(self.device)
        targets = MultiLabelTargets.from_images(labels)
        logits, loss = self.logits(batched_inputs), self.classification_loss
        if torch.is_grad_enabled() and not is_recomputed():
            loss.update(targets)
        divisor, _ = self.loss_normalizer(len(targets), targets.foreground.sum(), self.num_classes)
        return reduce_losses(loss.unreduced(logits, targets), divisor)

    def preprocess_image(self, batched_inputs: Sequence[Mapping[str, Any]]) -> ImageList:
        """Normalise, pad and batch the images."""
        normalized = [
            (one["image"].to(self.device) - self.pixel_mean) / self.pixel_std for one in batched_inputs
        ]
        return ImageList.from_tensors(normalized, self.backbone.size_divisibility)

    def logits(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the logits (N, L) of N images."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        pooled = [
            torch.stack(
                [
                    one[:, : (height - 1) // stride + 1, : (width - 1) // stride + 1].mean(dim=(1, 2))
                    for one, (height, width) in zip(features[name], images.image_sizes, strict=True)
                ]
            )
            for name, stride in zip(self.in_features, self.strides, strict=True)
        ]
        return self.classifier(self.neck(torch.cat(pooled, dim=1)))
