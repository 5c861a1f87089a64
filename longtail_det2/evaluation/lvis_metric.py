"""LVIS's average precision, and fixed AP, from arrays; matching is faster-coco-eval's.

The rules are those of LVIS's own evaluation (Gupta et al., CVPR 2019; package `lvis` 0.5.3):

1. Of an image, the best `max_detections` detections over all classes count. On equal scores the first do.
2. Detections of a class in an image count only if the class is annotated there or verified absent.
3. Detections without area do not count.
4. Matching and interpolated precision at 101 recalls are COCO's, at the IoU thresholds 0.5, 0.55, ..., 0.95.
5. An unmatched detection counts neither way in an image where not all objects of its class are annotated.

Fixed AP (Dave et al. 2021, "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details")
replaces rule 1: the best 10,000 detections of each class over all images count.

Classes are evaluated one after the other, so that only one class's objects and detections are Python objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

Task = Literal["bbox", "segm"]
Runs = dict[str, Any]

AREAS = ("all", "small", "medium", "large")
"""Names of the area ranges of `LvisResult.ap`."""
_AREA_BOUNDS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=np.float64)


@dataclass(frozen=True)
class ByClass:
    """Values of each class, in one array.

    Attributes:
        values: (n,) those of class k are [offsets[k]:offsets[k + 1]].
        offsets: (K + 1,) int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def group(cls, values: np.ndarray, classes: np.ndarray, num_classes: int) -> ByClass:
        """Sorts values by class, otherwise in the order that they have.

        Args:
            values: (n,).
            classes: (n,) in [0, num_classes).
            num_classes: K.
        """
        counts = np.bincount(classes, minlength=num_classes)
        return cls(values[np.argsort(classes, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))

    def __getitem__(self, k: int) -> np.ndarray:
        return self.values[self.offsets[k] : self.offsets[k + 1]]


@dataclass(frozen=True)
class LvisTruth:
    """Ground truth of a data set. Images are numbers whose order decides between detections of equal score.

    Attributes:
        image: (a,) int64 image of each annotation, ascending.
        annotations: rows of `image` of each class.
        box: (a, 4) float64, (x, y, width, height) in pixels.
        area: (a,) float64 in pixels.
        ignored: (a,) bool; a region (a group of objects) in which detections count neither way.
        masks: rows of annotations -> their run lengths; None where only boxes are evaluated.
        absent: images in which each class is verified absent.
        not_exhaustive: images of each class in which not all its objects are annotated.
    """

    image: np.ndarray
    annotations: ByClass
    box: np.ndarray
    area: np.ndarray
    ignored: np.ndarray
    masks: Callable[[np.ndarray], list[Runs]] | None
    absent: ByClass
    not_exhaustive: ByClass

    def num_objects(self) -> np.ndarray:
        """(K,) objects to find of each class: those that are not ignored."""
        offsets = self.annotations.offsets
        classes = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        return np.bincount(classes[~self.ignored[self.annotations.values]], minlength=len(offsets) - 1)


@dataclass(frozen=True)
class LvisDetections:
    """Detections, image by image in ascending order, in an image in the order of the model.

    Attributes:
        image: (n,) int.
        cls: (n,) int class indices.
        score: (n,) float.
        box: (n, 4) corners (x0, y0, x1, y1) in pixels.
        masks: rows of detections -> their run lengths; None where only boxes are evaluated.
    """

    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    box: np.ndarray
    masks: Callable[[np.ndarray], list[Runs]] | None


@dataclass(frozen=True)
class LvisResult:
    """Average precisions in [0, 1]; NaN for a class without ground truth (in the area range).

    Attributes:
        ap: (K, 4) over the IoU thresholds, by area range (`AREAS`).
        ap50: (K,) at IoU 0.5.
        ap75: (K,) at IoU 0.75.
    """

    ap: np.ndarray
    ap50: np.ndarray
    ap75: np.ndarray


def best_of_images(found: LvisDetections, limit: int) -> np.ndarray:
    """Rows of the best `limit` detections of each image over all classes, by image and descending score."""
    order = np.lexsort((-found.score, found.image))
    image = found.image[order]
    first = np.flatnonzero(np.diff(image, prepend=-1))
    place = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    return order[place < limit]


def best_of_classes(found: LvisDetections, num_classes: int, limit: int) -> np.ndarray:
    """Rows of the best `limit` detections of each class over all images, by image and descending score."""
    order = np.lexsort((-found.score, found.image))
    keep = np.ones(len(order), dtype=bool)
    of_class = ByClass.group(np.arange(len(order)), found.cls[order], num_classes)
    for k in np.flatnonzero(np.diff(of_class.offsets) > limit).tolist():
        places = of_class[k]
        keep[places[np.argsort(-found.score[order[places]], kind="stable")[limit:]]] = False
    return order[keep]


def evaluate_lvis(
    truth: LvisTruth, found: LvisDetections, chosen: Sequence[np.ndarray], task: Task
) -> list[LvisResult]:
    """LVIS's metric for one or more choices of detections.

    Args:
        truth: what there is.
        found: what was detected.
        chosen: rows of `found` that count, from `best_of_images` or `best_of_classes`; a class with the same
            rows in two choices is evaluated once.
        task: "bbox" or "segm".

    Returns:
        A result for each choice.
    """
    num_classes = len(truth.annotations.offsets) - 1
    rows = [ByClass.group(one, found.cls[one], num_classes) for one in chosen]
    shape = (len(chosen), num_classes)
    ap, ap50, ap75 = np.full((*shape, 4), np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for k in range(num_classes):
        if not len(truth.annotations[k]):
            continue
        done: list[tuple[np.ndarray, np.ndarray]] = []
        for place, of_class in enumerate(rows):
            same = [precision for before, precision in done if np.array_equal(before, of_class[k])]
            precision = same[0] if same else class_precision(truth, found, k, of_class[k], task)
            done.append((of_class[k], precision))
            ap[place, k] = precision.mean(axis=(0, 1))
            ap50[place, k], ap75[place, k] = precision[0, :, 0].mean(), precision[5, :, 0].mean()
    return [LvisResult(*one) for one in zip(ap, ap50, ap75, strict=True)]


def class_precision(
    truth: LvisTruth, found: LvisDetections, k: int, rows: np.ndarray, task: Task
) -> np.ndarray:
    """Interpolated precision of one class.

    Args:
        truth: what there is.
        found: what was detected.
        k: the class.
        rows: of `found`, all of this class, by image and descending score.
        task: "bbox" or "segm".

    Returns:
        (10 IoU thresholds, 101 recalls, 4 area ranges) in [0, 1]; NaN without ground truth.
    """
    objects = truth.annotations[k]
    seen = np.union1d(truth.image[objects], truth.absent[k])
    rows = rows[_contains(seen, found.image[rows])]
    box = found.box[rows].astype(np.float64)
    box[:, 2:] -= box[:, :2]
    masks = found.masks(rows) if found.masks is not None and task == "segm" else None
    area = box[:, 2] * box[:, 3] if masks is None else _mask_areas(masks)
    solid = area > 0
    if not solid.any():
        return _nothing_found(truth.area[objects], truth.ignored[objects])
    image = found.image[rows[solid]]
    images = np.union1d(truth.image[objects], image)
    detections = _annotations(np.searchsorted(images, image), box[solid], area[solid])
    for one, score in zip(detections, found.score[rows[solid]].tolist(), strict=True):
        one["score"] = score
    ground = _annotations(
        np.searchsorted(images, truth.image[objects]),
        truth.box[objects],
        truth.area[objects],
        truth.ignored[objects],
    )
    if task == "segm":
        assert masks is not None and truth.masks is not None
        kept = [masks[place] for place in np.flatnonzero(solid).tolist()]
        for one, runs in zip(ground + detections, truth.masks(objects) + kept, strict=True):
            one["segmentation"] = runs
    marked = _contains(truth.not_exhaustive[k], images)
    return _match(ground, detections, marked, int(np.bincount(np.searchsorted(images, image)).max()), task)


def _annotations(
    images: np.ndarray, box: np.ndarray, area: np.ndarray, ignored: np.ndarray | None = None
) -> list[dict[str, Any]]:
    crowd = np.zeros(len(images), dtype=np.int64) if ignored is None else ignored.astype(np.int64)
    columns = (images.tolist(), box.tolist(), area.tolist(), crowd.tolist())
    return [
        # A match with id 0 would be none.
        {"id": number, "image_id": image, "category_id": 0, "bbox": xywh, "area": size, "iscrowd": flag}
        for number, (image, xywh, size, flag) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _match(
    ground: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    not_exhaustive: np.ndarray,
    most: int,
    task: Task,
) -> np.ndarray:
    """Matches and accumulates; `not_exhaustive` (images,) bool, `most` detections in one image."""
    marks = [[0] if marked else [] for marked in not_exhaustive.tolist()]
    images = [
        {"id": i, "height": 0, "width": 0, "neg_category_ids": [0], "not_exhaustive_category_ids": marked}
        for i, marked in enumerate(marks)
    ]
    categories = [{"id": 0, "name": "", "frequency": "f"}]
    # The library prints its progress.
    with redirect_stdout(StringIO()):
        truth, found = (
            COCO({"images": images, "annotations": annotations, "categories": categories})
            for annotations in (ground, detections)
        )
        evaluation = COCOeval_faster(truth, found, task, print_function=lambda *_: None, lvis_style=True)
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, 0, :, 0]
    return np.where(precision < 0, np.nan, precision)


def _nothing_found(area: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    precision = np.full((10, 101, len(AREAS)), np.nan)
    low, high = _AREA_BOUNDS.T
    inside = (area[:, None] >= low) & (area[:, None] <= high) & ~ignored[:, None]
    precision[:, :, inside.any(axis=0)] = 0.0
    return precision


def _mask_areas(masks: Sequence[Runs]) -> np.ndarray:
    if not masks:
        return np.zeros(0)
    # pycocotools cannot do this for more than 255 masks with NumPy 2.
    return np.asarray(coco_mask.area(list(masks)), dtype=np.float64)


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which values are among others that ascend."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[places] == values
