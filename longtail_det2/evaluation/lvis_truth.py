"""What LVIS's metric reads from an annotation store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from longtail_det2.data.datasets.coco import LVIS_THRESHOLDS, frequency_letters
from longtail_det2.data.store import AnnotationStore, ImageLabel
from longtail_det2.evaluation.lvis_metric import ByClass, LvisTruth, Runs
from longtail_det2.evaluation.store_truth import truth_of_store, whole_box_runs
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def class_frequencies(store: AnnotationStore, train_counts: np.ndarray | None) -> tuple[str, ...] | None:
    """LVIS's group of each class: "r", "c" or "f"; None where neither the store nor counts tell.

    Args:
        store: its own frequencies go first.
        train_counts: (K,) training images of each class: at most 10 is rare, at most 100 common.

    Raises:
        ConfigError: counts of other classes.
    """
    if train_counts is not None and train_counts.shape != (store.num_classes,):
        raise ConfigError(
            f"train_counts has shape {train_counts.shape}, but {store.path} has {store.num_classes} classes: "
            "training and evaluation need the same classes"
        )
    if store.class_frequencies is not None:
        return store.class_frequencies
    if train_counts is None:
        logger.warning(
            "%s knows no frequencies of its classes, nor are training counts known: APr, APc and APf are NaN",
            store.path,
        )
        return None
    logger.info(
        "%s knows no frequencies of its classes: those in at most %d training images are rare, in at most %d "
        "common, in more frequent",
        store.path,
        *LVIS_THRESHOLDS,
    )
    return tuple(frequency_letters(train_counts))


def image_order(image_ids: Sequence[str]) -> np.ndarray:
    """Positions of images in ascending order of their ids, of numbers as numbers.

    Detections of equal score in several images are ranked in this order, as by LVIS's own evaluation.
    """
    if all(name.isdecimal() for name in image_ids):
        return np.array(
            sorted(range(len(image_ids)), key=lambda place: int(image_ids[place])), dtype=np.int64
        )
    return np.arange(len(image_ids))


def lvis_truth(store: AnnotationStore, order: np.ndarray, *, with_masks: bool) -> LvisTruth:
    """The ground truth of a store as LVIS's metric reads it.

    Args:
        store: with image sizes.
        order: (n,) positions of the images in the order that they are numbered in, from `image_order`.
        with_masks: for masks; an object without one is then a region that is ignored.
    """
    truth = truth_of_store(store, with_masks=with_masks)
    number = np.empty(len(store), dtype=np.int64)
    number[order] = np.arange(len(store))
    pairs = np.argsort(number[truth.image], kind="stable")
    rows, image = truth.object[pairs], number[truth.image[pairs]]
    runs, ignored = truth.runs, truth.group[rows]
    if runs is not None:
        ignored = ignored | np.array([runs[row] is None for row in rows.tolist()], dtype=bool)

    def masks(places: np.ndarray) -> list[Runs]:
        assert runs is not None
        sizes = store.image_sizes[order[image[places]]].tolist()
        return [
            runs[row] or whole_box_runs(truth.box[row], *size)
            for row, size in zip(rows[places].tolist(), sizes, strict=True)
        ]

    return LvisTruth(
        image=image,
        annotations=ByClass.group(np.arange(len(rows)), truth.cls[pairs], store.num_classes),
        box=truth.box[rows],
        area=truth.area[rows],
        ignored=ignored,
        masks=None if runs is None else masks,
        absent=_verified(store, number, ImageLabel.ABSENT),
        not_exhaustive=_verified(store, number, ImageLabel.NOT_EXHAUSTIVE),
    )


def _verified(store: AnnotationStore, number: np.ndarray, kind: ImageLabel) -> ByClass:
    """Images of each class that have an image-level label of one kind, with its expansion."""
    image = np.repeat(number, np.diff(store.image_label_offsets))
    chosen = store.image_label_status == int(kind)
    rows, classes = store.hierarchy.expand(
        image[chosen], store.image_labels[chosen], up=kind is not ImageLabel.ABSENT
    )
    keys = np.unique(rows * np.int64(store.num_classes) + classes)
    return ByClass.group(keys // store.num_classes, keys % store.num_classes, store.num_classes)
