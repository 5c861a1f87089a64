"""Matching detections to ground truth by the rules of the Open Images challenge, vectorised.

The rules and the shape glossary stand at the head of openimages_metric.py, the public face of this file. All
functions work on the (image, class) pairs that exist, as flat arrays ordered by the key
class * number of images + image; there is no loop over images or classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from longtail_det2.utils.errors import ConfigError, DataError

_OVERLAPS_AT_ONCE = 1 << 16
"""Overlaps computed together; small enough for the processor's cache."""


def _empty_int() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


def _check_columns(name: str, columns: dict[str, np.ndarray], box: np.ndarray | None = None) -> None:
    lengths = {key: column.shape for key, column in columns.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise DataError(f"{name}: columns must be 1-D arrays of one length, got shapes {lengths}")
    count = next(iter(lengths.values()))[0]
    if box is not None and box.shape != (count, 4):
        raise DataError(f"{name}: box has shape {box.shape}, expected ({count}, 4)")


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes and verified image-level labels.

    Attributes:
        image: (G,) integer image index >= 0 of each box.
        cls: (G,) integer class in [0, K).
        box: (G, 4) float XYXY.
        group_of: (G,) bool, True for one box around a group of objects.
        label_image: (L,) integer image index of each image-level label.
        label_cls: (L,) integer class in [0, K).
        label_present: (L,) bool, True for "verified present", False for "verified absent".

    Raises:
        DataError: columns of different lengths.
    """

    image: np.ndarray
    cls: np.ndarray
    box: np.ndarray
    group_of: np.ndarray
    label_image: np.ndarray = field(default_factory=_empty_int)
    label_cls: np.ndarray = field(default_factory=_empty_int)
    label_present: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        columns = {"image": self.image, "cls": self.cls, "group_of": self.group_of}
        _check_columns("ground truth", columns, self.box)
        columns = {name: getattr(self, name) for name in ("label_image", "label_cls", "label_present")}
        _check_columns("image-level labels", columns)

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections:
    """Scored boxes, in any order.

    Attributes:
        image: (D,) integer image index as in the ground truth; -1 or any other index without annotation is
            never read.
        cls: (D,) integer class in [0, K).
        score: (D,) float, higher is more certain.
        box: (D, 4) float XYXY in the unit of the ground truth.

    Raises:
        DataError: columns of different lengths.
    """

    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    box: np.ndarray

    def __post_init__(self) -> None:
        _check_columns("detections", {"image": self.image, "cls": self.cls, "score": self.score}, self.box)

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class MatchOptions:
    """Options of the metric; see `evaluate_detections`.

    Raises:
        ConfigError: a value out of range.
    """

    iou_threshold: float = 0.5
    group_of_weight: float = 1.0
    use_image_labels: bool = True
    verified_filter: bool = True
    max_detections: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.iou_threshold <= 1:
            raise ConfigError(f"iou_threshold must be in (0, 1], got {self.iou_threshold}")
        if not 0 <= self.group_of_weight < np.inf:
            raise ConfigError(f"group_of_weight must be >= 0 and finite, got {self.group_of_weight}")
        if self.max_detections < 1:
            raise ConfigError(f"max_detections must be >= 1, got {self.max_detections}")


COUNT_NAMES: tuple[str, ...] = (
    "detections",
    "image_not_annotated",
    "inverted",
    "class_not_verified",
    "over_limit",
    "true_positives",
    "absorbed_by_group_of",
    "false_positives",
    "groups_found",
)


@dataclass(frozen=True)
class _Targets:
    """Boxes to be found, ordered by pair; rows of one pair keep the order of the ground truth."""

    key: np.ndarray  # (T,) class * number of images + image
    box: np.ndarray  # (T, 4) float64

    @classmethod
    def select(cls, key: np.ndarray, box: np.ndarray, mask: np.ndarray) -> _Targets:
        rows = np.flatnonzero(mask)
        rows = rows[np.argsort(key[rows], kind="stable")]
        return cls(key[rows], box[rows].astype(np.float64))


@dataclass(frozen=True)
class ClassesGroundTruth:
    """Ground truth of a range of classes."""

    num_images: int
    single: _Targets
    group: _Targets
    verified: np.ndarray | None  # sorted keys; None: every class is verified everywhere

    @classmethod
    def select(
        cls, gt: GroundTruth, classes: range, num_images: int, options: MatchOptions
    ) -> ClassesGroundTruth:
        """Picks the boxes and verified pairs of `classes`, a contiguous range."""
        rows = np.flatnonzero((gt.cls >= classes.start) & (gt.cls < classes.stop))
        key = gt.cls[rows].astype(np.int64) * num_images + gt.image[rows]
        group_of = gt.group_of[rows].astype(bool)
        verified = None
        if options.verified_filter:
            keys = [key]
            if options.use_image_labels:
                inside = (gt.label_cls >= classes.start) & (gt.label_cls < classes.stop)
                label_cls = gt.label_cls[inside].astype(np.int64)
                keys.append(label_cls * num_images + gt.label_image[inside])
            verified = np.sort(np.concatenate(keys))  # repeats are harmless, and np.unique is slow
        box = gt.box[rows]
        return cls(
            num_images, _Targets.select(key, box, ~group_of), _Targets.select(key, box, group_of), verified
        )


@dataclass(frozen=True)
class KeptDetections:
    """Detections that count, ordered by (class, image, score descending, box)."""

    key: np.ndarray
    score: np.ndarray
    box: np.ndarray
    cls: np.ndarray

    @classmethod
    def select(
        cls,
        detections: Detections,
        rows: np.ndarray,
        classes: np.ndarray,
        annotated: np.ndarray,
        gt: ClassesGroundTruth,
        options: MatchOptions,
        counts: dict[str, int],
    ) -> KeptDetections:
        """Applies rules 1 to 4 and adds what they drop to `counts`.

        Args:
            detections: all detections.
            rows: (n,) those of the classes at hand; a row may occur for several classes.
            classes: (n,) class for which each row counts.
            annotated: (number of images,) bool.
            gt: ground truth of the same classes.
            options: options of the metric.
            counts: changed in place.
        """
        counts["detections"] += len(rows)
        image = detections.image[rows]
        read = (image >= 0) & (image < len(annotated))
        read[read] = annotated[image[read]]
        counts["image_not_annotated"] += len(rows) - int(read.sum())
        rows, classes, image = rows[read], classes[read], image[read]
        box = detections.box[rows]
        valid = (box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3])
        counts["inverted"] += len(rows) - int(valid.sum())
        key = classes.astype(np.int64) * gt.num_images + image
        known = valid if gt.verified is None else valid & np.isin(key, gt.verified)
        counts["class_not_verified"] += int(valid.sum()) - int(known.sum())
        key, box = key[known], box[known].astype(np.float64)
        score = detections.score[rows[known]].astype(np.float64)
        order = _by_content(key, score, box)
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        within = rank < options.max_detections
        counts["over_limit"] += len(order) - int(within.sum())
        order = order[within]
        return cls(key[order], score[order], box[order], classes[known][order])


def _by_content(key: np.ndarray, score: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Order by key, then score descending, then box coordinates; these are compared only where needed."""
    order = np.lexsort((-score, key))
    tied = (np.diff(key[order]) == 0) & (np.diff(score[order]) == 0)
    member = np.zeros(len(order), dtype=bool)
    member[1:] |= tied
    member[:-1] |= tied
    rows = order[member]
    if len(rows):
        coordinates = tuple(box[rows, i] for i in (3, 2, 1, 0))
        order[member] = rows[np.lexsort((*coordinates, -score[rows], key[rows]))]
    return order


def match_detections(
    kept: KeptDetections, gt: ClassesGroundTruth, options: MatchOptions, counts: dict[str, int]
) -> np.ndarray:
    """Rules 5 to 7: (n,) weight of each detection; NaN marks those that were absorbed and do not count."""
    weights = np.zeros(len(kept.key))
    chosen = _best_target(kept.key, kept.box, gt.single, options.iou_threshold, by_detection_area=False)
    # Detections of a pair stand in score order, so the first one that chose a box is the one that gets it.
    weights[_first_of_each(chosen)] = 1.0
    rest = np.flatnonzero(weights == 0)
    group = _best_target(
        kept.key[rest], kept.box[rest], gt.group, options.iou_threshold, by_detection_area=True
    )
    absorbed = rest[group >= 0]
    best = rest[_first_of_each(group)]
    counts["groups_found"] += len(best)
    best = best[(kept.score[best] > 0) & (options.group_of_weight > 0)]
    counts["true_positives"] += len(kept.key) - len(rest)
    counts["absorbed_by_group_of"] += len(absorbed)
    counts["false_positives"] += len(rest) - len(absorbed)
    weights[absorbed] = np.nan
    weights[best] = options.group_of_weight
    return weights


def _first_of_each(targets: np.ndarray) -> np.ndarray:
    """Positions at which a target >= 0 occurs for the first time."""
    rows = np.flatnonzero(targets >= 0)
    return rows[np.unique(targets[rows], return_index=True)[1]]


def _best_target(
    key: np.ndarray, box: np.ndarray, targets: _Targets, threshold: float, by_detection_area: bool
) -> np.ndarray:
    """(n,) index of the target of the same pair with the highest overlap, -1 if that is below the threshold.

    Args:
        key: (n,) sorted pair of each detection.
        box: (n, 4) detections.
        targets: boxes of all pairs.
        threshold: least overlap.
        by_detection_area: divide the intersection by the detection's area, not by the union.
    """
    result = np.full(len(key), -1, dtype=np.int64)
    start = np.searchsorted(targets.key, key)
    count = np.searchsorted(targets.key, key, side="right") - start
    candidates = np.flatnonzero(count)
    ends = np.cumsum(count[candidates])
    bounds = np.flatnonzero(np.diff(ends // _OVERLAPS_AT_ONCE)) + 1
    for rows in np.split(candidates, bounds):
        if len(rows) == 0:
            continue
        repeats = count[rows]
        segment = np.cumsum(repeats) - repeats
        target = np.repeat(start[rows] - segment, repeats) + np.arange(int(repeats.sum()))
        overlap = _overlap(np.repeat(box[rows], repeats, axis=0), targets.box[target], by_detection_area)
        best = np.maximum.reduceat(overlap, segment)
        position = np.where(overlap == np.repeat(best, repeats), np.arange(len(overlap)), len(overlap))
        first_best = np.minimum.reduceat(position, segment)
        result[rows] = np.where(best >= threshold, target[first_best], -1)
    return result


def _overlap(box: np.ndarray, target: np.ndarray, by_detection_area: bool) -> np.ndarray:
    """(n,) overlap of corresponding rows: intersection over union or over the detection's (positive) area."""
    width = np.minimum(box[:, 2], target[:, 2]) - np.maximum(box[:, 0], target[:, 0])
    height = np.minimum(box[:, 3], target[:, 3]) - np.maximum(box[:, 1], target[:, 1])
    intersection = np.maximum(height, 0.0) * np.maximum(width, 0.0)
    area = (box[:, 3] - box[:, 1]) * (box[:, 2] - box[:, 0])
    if not by_detection_area:
        area = area + (target[:, 3] - target[:, 1]) * (target[:, 2] - target[:, 0]) - intersection
    # Areas can underflow to 0 although the sides are positive; such boxes overlap nothing.
    return np.divide(intersection, area, out=np.zeros_like(area), where=area > 0)
