"""Anchors of an epoch of training, counted by what they match: without the network, and without pixels."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn
from tqdm import tqdm

from longtail_det2.data.build import build_train_loader_from_config, get_dataset
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.statistics import (
    AnchorStatistics,
    ClassStatistics,
    compute_statistics,
    write_statistics,
)
from longtail_det2.modeling.anchor_priors import anchor_settings, forget_measured_prior
from longtail_det2.modeling.meta_arch.dense import MultiLabelDenseDetector
from longtail_det2.structures.multi_label import BACKGROUND, IGNORE, POSITIVE, DenseTargets
from longtail_det2.utils.errors import ConfigError

from .build import build_model


def measure_anchors(cfg: CfgNode, progress: bool = False) -> ClassStatistics:
    """Compute the class statistics of ``DATASETS.TRAIN`` with the anchors of one epoch of a YAML config.

    An epoch has as many batches of the training loader as the data set has images, divided by
    ``SOLVER.IMS_PER_BATCH``. Images are augmented and padded as in training, but files are not read where the
    records have the size of the image. Where there are several processes, all call this, and share the work.

    Args:
        cfg: not changed. The data sets are registered; the number of classes is taken from them.
        progress: show a progress bar.

    Raises:
        ConfigError: no training data set is named; or see :func:`.build.build_model`, :func:`count_anchors`.
        DataError: a data set is unknown or absent.
    """
    statistics, settings = compute_statistics(cfg.DATASETS.TRAIN), anchor_settings(cfg)
    num_classes = len(statistics.class_ids)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    forget_measured_prior(cfg)
    with TemporaryDirectory() as folder:  # for losses that want class statistics
        cfg.DATASETS.STATISTICS = os.path.join(folder, "statistics.json")
        write_statistics(cfg.DATASETS.STATISTICS, statistics)
        model = build_model(cfg)
    dataset = get_dataset(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    mapper = _SizesAlone(**_SizesAlone.from_config(cfg, is_train=True))
    loader = build_train_loader_from_config(cfg, mapper=mapper, dataset=dataset)
    number = -(-len(dataset) // cfg.SOLVER.IMS_PER_BATCH)
    batches = tqdm(islice(loader, number), "anchors", number, unit="batch", disable=not progress)
    parts = comm.all_gather(count_anchors(model, batches, num_classes))
    return replace(
        statistics,
        anchors=AnchorStatistics(
            np.sum([part.positives for part in parts], axis=0),
            sum(part.foreground for part in parts),
            sum(part.number for part in parts),
            settings,
        ),
    )


def count_anchors(
    model: nn.Module,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    num_classes: int,
) -> AnchorStatistics:
    """Count the anchors of training batches by what the model matches them with, before any sampling.

    Args:
        model: a dense detector of this project, or one with Detectron2's RPN. Its weights do not matter, and
            are not changed. Anchors are matched on its device.
        batches: of mapped images. Of ``image`` only the size matters.
        num_classes: K.

    Raises:
        ConfigError: the model has no such anchors.
    """
    dense = isinstance(model, MultiLabelDenseDetector)
    part: Any = model if dense else getattr(model, "proposal_generator", None)
    if not isinstance(part, (MultiLabelDenseDetector, RPN)):
        raise ConfigError(
            f"{type(model).__name__} has no anchors to count: set MODEL.META_ARCHITECTURE to "
            "MultiLabelRetinaNet or MultiLabelFCOS, or MODEL.PROPOSAL_GENERATOR.NAME to RPN or NormalizedRPN"
        )
    features_of = _empty_features(model, part.head_in_features if dense else part.in_features)
    label = part.label_objects if dense else _label_objects_of(part, num_classes)
    positives, foreground, number = torch.zeros(num_classes, dtype=torch.int64), 0, 0
    for batch in batches:
        anchors = part.anchor_generator(features_of(batch))
        targets, _ = label(anchors, [image["instances"].to(anchors[0].device) for image in batch])
        positives += (targets.positives.labels[:, :-1] == POSITIVE).sum(dim=0).cpu()
        foreground += len(targets.rows)
        number += int((targets.classes >= 0).sum())
    return AnchorStatistics(positives.numpy(), foreground, number, {})


_Targets: TypeAlias = tuple[DenseTargets, Tensor]
_Batch: TypeAlias = Sequence[Mapping[str, Any]]


def _label_objects_of(rpn: RPN, num_classes: int) -> Callable[[list[Boxes], list[Instances]], _Targets]:
    """Return the counterpart of :meth:`MultiLabelDenseDetector.label_objects`, for all anchors of an RPN."""
    rpn = copy.copy(rpn)
    rpn._subsample_labels = lambda label: label

    def label_objects(anchors: list[Boxes], objects: list[Instances]) -> _Targets:
        matches = []
        for labels, boxes, image in zip(
            *rpn.label_and_sample_anchors(anchors, objects), objects, strict=True
        ):
            matched = torch.where(labels == 0, BACKGROUND, IGNORE)
            (positive,) = (labels == 1).nonzero(as_tuple=True)
            if len(positive):
                same = (boxes[positive, None] == image.gt_boxes.tensor).all(dim=2)
                matched[positive] = same.long().argmax(dim=1)
            matches.append(matched)
        return DenseTargets.from_matches(matches, objects, num_classes)

    return label_objects


def _empty_features(model: nn.Module, levels: Sequence[str]) -> Callable[[_Batch], list[Tensor]]:
    """Return a function that gives levels of the right height and width, and nothing in them, for a batch."""
    shapes: Any = copy.deepcopy(model).to("meta").eval()  # computes shapes alone
    known: dict[torch.Size, list[torch.Size]] = {}

    @torch.no_grad()
    def features_of(batch: _Batch) -> list[Tensor]:
        images = shapes.preprocess_image(batch).tensor
        padded = images.shape[-2:]
        if padded not in known:
            features = shapes.backbone(images[:1])
            known[padded] = [features[level].shape[-2:] for level in levels]
        return [torch.empty(0, 0, *size) for size in known[padded]]

    return features_of


class _SizesAlone(MultiLabelDatasetMapper):
    """Maps images of one grey value: what becomes of the boxes depends on the image's size alone."""

    def read_image(self, record: dict[str, Any]) -> np.ndarray:
        if "height" not in record or "width" not in record:
            return super().read_image(record)[:, :, :1]
        return np.zeros((record["height"], record["width"], 1), np.uint8)
