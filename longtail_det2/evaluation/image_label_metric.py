"""Metrics of classifiers of images: average precision and F1 of the labels of whole images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.ground_truth import MetricResult, StoreGroundTruth, mean_of_known
from longtail_det2.structures.multi_label import IGNORED, NEGATIVE, POSITIVE
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import atomic_writer

logger = logging.getLogger(__name__)

TASK = "image_labels"
SCORES_FILE = "scores.npz"


@dataclass(frozen=True)
class ImageScores:
    """Scores of all classes in some images.

    Attributes:
        image: (n,) int64 ascending positions of the images in the store.
        score: (n, K) float32.
    """

    image: np.ndarray
    score: np.ndarray


class ScoreBuffer:
    """Collects the scores of images of one process."""

    def __init__(self, store: AnnotationStore) -> None:
        self._store = store
        self._index = store.index_images()
        self.reset()

    def reset(self) -> None:
        """Drop everything."""
        self._images: list[int] = []
        self._scores: list[np.ndarray] = []
        self._unknown = 0

    def add(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Append the `scores` (K,) of one image.

        Raises:
            ConfigError: the model gives no scores of images, or those of other classes.
            DataError: a score is not finite.
        """
        if "scores" not in output:
            raise ConfigError(
                f"TEST.METRICS {TASK!r} compares labels of whole images, but the model is no classifier of "
                "images: set MODEL.META_ARCHITECTURE to MultiLabelClassifier, or choose another metric"
            )
        image = self._index.get(str(record["image_id"]))
        if image is None:
            self._unknown += 1
            return
        score = output["scores"].detach().float().cpu().numpy()
        if score.shape != (self._store.num_classes,):
            raise ConfigError(
                f"the model gives {score.size} scores of an image, but {self._store.path} has "
                f"{self._store.num_classes} classes: training and evaluation need the same classes"
            )
        if not np.isfinite(score).all():
            raise DataError(f"{record['file_name']}: the model gives scores that are not finite")
        self._images.append(image)
        self._scores.append(score)

    def gather(self) -> ImageScores | None:
        """Join the scores of all processes, each image once, and empty the buffer; None but on the main one.

        Logs images without output and unknown images.
        """
        empty = np.zeros((0, self._store.num_classes), np.float32)
        own = np.array(self._images, np.int64), np.vstack([empty, *self._scores]), self._unknown
        self.reset()
        parts = comm.gather(own)
        if not comm.is_main_process():
            return None
        images, scores = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        images, first = np.unique(images, return_index=True)
        missing, unknown = len(self._store) - len(images), sum(part[2] for part in parts)
        if unknown:
            logger.warning("%d outputs are of images that are not in %s", unknown, self._store.path)
        if missing:
            logger.warning("%d of %d images had no output and do not count", missing, len(self._store))
        return ImageScores(images, scores[first])


@dataclass(frozen=True)
class ImageLabelMetric:
    """Mean average precision, not interpolated, and F1 of image labels, as scikit-learn defines them.

    A class that is not verified in an image does not count there.

    Attributes:
        score_threshold: F1 takes classes with a score above it as predicted.
    """

    score_threshold: float = 0.5
    name = TASK

    def check(self, store: AnnotationStore) -> None:
        """Raise ConfigError where the threshold is out of range, or no image has a label."""
        if not 0 <= self.score_threshold < 1:
            raise ConfigError(
                f"TEST.IMAGE_LABELS.SCORE_THRESH is {self.score_threshold}; it must be in [0, 1)"
            )
        if not len(store.image_labels) and not store.num_objects:
            raise ConfigError(f"{store.path}: no image has a label to compare with")

    def measure(
        self,
        gt: StoreGroundTruth,
        found: ImageScores,
        bins: Mapping[str, np.ndarray],
        counts: np.ndarray | None,
    ) -> MetricResult:
        """Return mAP, micro_F1 and macro_F1, and those of each bin (mAP_tail, ...), under "image_labels".

        AP of a class without a positive image is NaN and left out of the means.
        """
        truth = image_truth(gt)[found.image]
        ap = np.array([average_precision(t, s) for t, s in zip(truth.T, found.score.T, strict=True)])
        confusion = f1_counts(truth, found.score > self.score_threshold)
        groups = {"": np.arange(len(ap)), **{f"_{name}": classes for name, classes in bins.items()}}
        if len(groups.get("_leaves", ())) == len(ap):  # without a hierarchy
            del groups["_leaves"]
        summary: dict[str, float] = {}
        for group, classes in groups.items():
            summary[f"mAP{group}"] = mean_of_known(ap[classes])
            summary[f"micro_F1{group}"] = float(f1(confusion[classes].sum(axis=0)))
            summary[f"macro_F1{group}"] = mean_of_known(f1(confusion[classes]))
        return MetricResult({TASK: summary}, {TASK: ap, "num_gt": np.sum(truth == POSITIVE, axis=0)})


def image_truth(gt: StoreGroundTruth) -> np.ndarray:
    """(n, K) int8 in {1, 0, -1}: whether each image of a store has each class; -1 where unverified."""
    store = gt.store
    shape = len(store), store.num_classes
    truth = np.full(shape, NEGATIVE if store.exhaustive_labels else IGNORED, dtype=np.int8)
    truth.reshape(-1)[gt.absent] = NEGATIVE
    truth.reshape(-1)[np.concatenate([gt.keys, gt.present])] = POSITIVE
    return truth


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """Sum of (R_n - R_{n-1}) P_n over the distinct scores, from the highest; NaN without a positive.

    Args:
        truth: (n,) in {1, 0, -1}; -1 does not count.
        score: (n,).
    """
    known = truth != IGNORED
    truth, score = truth[known] == POSITIVE, score[known]
    if not truth.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (last + 1)))


def f1_counts(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(K, 2) int64 per class: true positives, and positives plus predictions, of (n, K) entries."""
    known = truth != IGNORED
    predicted = predicted & known
    hits = (truth == POSITIVE) & predicted
    return np.stack([hits.sum(axis=0), (truth == POSITIVE).sum(axis=0) + predicted.sum(axis=0)], axis=1)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of counts (..., 2) as `f1_counts` gives them; 0 where nothing is positive or predicted."""
    return 2 * counts[..., 0] / np.maximum(counts[..., 1], 1)


def write_scores(path: Path, store: AnnotationStore, found: ImageScores) -> None:
    """Write `image_ids` (n,), `class_ids` (K,) and `scores` (n, K) as a compressed `.npz`, atomically."""
    names = np.char.decode(store.image_ids[found.image], "utf-8")
    with atomic_writer(path, "wb") as file:
        np.savez_compressed(file, image_ids=names, class_ids=store.class_ids, scores=found.score)


def read_scores(path: Path, store: AnnotationStore) -> ImageScores:
    """Read what `write_scores` wrote; raises DataError where it is of other images or classes."""
    try:
        with np.load(path, allow_pickle=False) as content:
            names, classes, scores = (content[key] for key in ("image_ids", "class_ids", "scores"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as scores of images ({error})") from None
    index = store.index_images()
    images = np.array([index.get(name, -1) for name in names.tolist()], dtype=np.int64)
    if classes.tolist() != list(store.class_ids) or (images < 0).any() or scores.ndim != 2:
        raise DataError(f"{path}: scores of other images or classes than those of {store.path}")
    return ImageScores(images, scores)
