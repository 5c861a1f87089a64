"""What metrics take from a model's outputs, and how their files name it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image, those that are not finite left out, in the order of the model.

    Attributes:
        box: (n, 4) float32, (x0, y0, x1, y1) in pixels of the original image.
        score: (n,) float32.
        cls: (n,) int32 class indices.
        runs: n masks as COCO's compressed run lengths; None without masks.
        dropped: how many were not finite.
    """

    box: np.ndarray
    score: np.ndarray
    cls: np.ndarray
    runs: list[dict[str, Any]] | None
    dropped: int


def read_instances(instances: Instances, *, with_masks: bool) -> ImageDetections:
    """Takes boxes, scores, classes and masks from a model's output.

    Args:
        instances: with pred_boxes, scores, pred_classes and, `with_masks`, pred_masks (n, H, W) bool. Encoded
            masks are kept there as `pred_masks_rle`, so that a second metric need not encode them again.
        with_masks: read masks.

    Raises:
        ConfigError: there are no masks.
    """
    box = instances.pred_boxes.tensor.detach().float().cpu().numpy()
    score = instances.scores.detach().float().cpu().numpy()
    cls = instances.pred_classes.cpu().numpy().astype(np.int32)
    finite = np.isfinite(box).all(axis=1) & np.isfinite(score)
    runs = None
    if with_masks:
        encoded = _encoded_masks(instances)
        runs = [encoded[place] for place in np.flatnonzero(finite).tolist()]
    return ImageDetections(box[finite], score[finite], cls[finite], runs, int((~finite).sum()))


def _encoded_masks(instances: Instances) -> list[dict[str, Any]]:
    if len(instances) == 0:
        return []
    if not instances.has("pred_masks_rle"):
        if not instances.has("pred_masks"):
            raise ConfigError(
                "masks are to be evaluated, but the model gives none (pred_masks): switch MODEL.MASK_ON "
                "on, or evaluate boxes only (TEST.COCO.TASKS and TEST.LVIS.TASKS without 'segm')"
            )
        encode: Any = coco_mask.encode
        masks = instances.pred_masks.cpu().numpy()
        instances.pred_masks_rle = [encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return instances.pred_masks_rle


def log_coverage(store: AnnotationStore, processed: int, not_in_store: int, not_finite: int = 0) -> None:
    """Warns of images without output, outputs without image, and numbers that are none.

    Args:
        store: with the ground truth.
        processed: images of the store that had an output.
        not_in_store: outputs of other images.
        not_finite: detections that were dropped.
    """
    if not_in_store:
        logger.warning("%d outputs are of images that are not in %s", not_in_store, store.path)
    if not_finite:
        logger.warning("%d detections with a box or score that is not finite were dropped", not_finite)
    missing = len(store) - processed
    if missing:
        logger.warning("%d of %d images had no output: their objects count as missed", missing, len(store))


def class_facts(store: AnnotationStore, train_counts: np.ndarray | None) -> list[dict[str, Any]]:
    """What the metrics' files say of each class besides its AP: id, name, is_leaf, train_images or None."""
    leaves = set(store.hierarchy.leaves.tolist())
    return [
        {
            "id": json_id(store.class_ids[k]),
            "name": store.class_names[k],
            "is_leaf": k in leaves,
            "train_images": None if train_counts is None else int(train_counts[k]),
        }
        for k in range(store.num_classes)
    ]


def json_id(text: str) -> int | str:
    """An id as the data set's file has it: ids that were numbers are numbers again."""
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN of none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def number_or_null(value: float) -> float | None:
    """A number for a JSON file, which knows no NaN."""
    return None if math.isnan(value) else float(value)


def fractions(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Percentages by task and name as fractions for a JSON file."""
    return {
        task: {name: number_or_null(value / 100) for name, value in values.items()}
        for task, values in results.items()
    }
