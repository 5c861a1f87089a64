"""The Open Images detection-challenge metric (2019) on plain arrays.

docs/openimages_metric.md has the rules that comments name by their numbers.

Shapes: D detections, K classes, T boxes to be found. A pair is one class in one image; its key is
class * number of images + image. Everything works on flat arrays ordered by this key; there is no loop over
images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.ground_truth import MetricResult, StoreGroundTruth, class_ranges, mean_of_known
from longtail_det2.evaluation.openimages_io import Detections, GroundTruth
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.ragged import places_in_runs

if TYPE_CHECKING:
    from longtail_det2.evaluation.detection_buffer import DetectionColumns

MAX_DETECTIONS = 10_000
"""Detections of a class in an image that count."""
_DETECTIONS_AT_ONCE = 1 << 20
"""Detections matched together, about."""
_OVERLAPS_AT_ONCE = 1 << 16
"""Overlaps computed together; small enough for the processor's cache."""


@dataclass(frozen=True)
class OpenImagesResult:
    """What `evaluate_detections` found.

    Attributes:
        metric: the reference implementation's name of the metric.
        mean_ap: mean of `ap` over the classes with ground truth, in [0, 1]; NaN if there is no such class.
        ap: (K,) float64 in [0, 1]; NaN for a class without ground truth.
        num_gt: (K,) float64 ground-truth count (group-of boxes by their weight).
        num_images: images with at least one annotation row.
        counts: what became of the detections. "detections" is the sum of "image_not_annotated", "inverted",
            "class_not_verified", "over_limit", "absorbed_by_group_of", "true_positives" (single boxes) and
            "false_positives"; "groups_found" counts group-of boxes.
    """

    metric: str
    mean_ap: float
    ap: np.ndarray
    num_gt: np.ndarray
    num_images: int
    counts: dict[str, int]


@dataclass(frozen=True)
class OpenImagesMetric:
    """The official metric on a store: annotations are expanded by its hierarchy.

    Attributes:
        iou_threshold: in (0, 1].
        group_of_weight: weight of a group-of box.
        expand_predictions: give a second number, with every prediction repeated for its class's ancestors.
        write_predictions_csv: write predictions.csv, the challenge's form.
    """

    iou_threshold: float = 0.5
    group_of_weight: float = 1.0
    expand_predictions: bool = True
    write_predictions_csv: bool = True
    name = "open_images"

    def check(self, store: AnnotationStore) -> None:
        """Raise ConfigError for an option out of range."""
        check_options(self.iou_threshold, self.group_of_weight)

    def measure(
        self, gt: StoreGroundTruth, found: DetectionColumns, bins: Mapping[str, np.ndarray], counts: Any
    ) -> MetricResult:
        """Return "mAP50", "mAP50_expanded" and "mAP50_<bin>" under "bbox"; see `MetricResult`.

        With another IoU threshold the names say so.
        """
        store = gt.store
        in_pixels = store.form != "open_images" and store.has_image_sizes
        metric = partial(
            evaluate_detections,
            expand_ground_truth(gt.open_images(in_pixels=in_pixels), store.hierarchy),
            Detections(found.image, found.cls, found.score, found.box if in_pixels else found.shares()),
            store.num_classes,
            iou_threshold=self.iou_threshold,
            group_of_weight=self.group_of_weight,
        )
        result = metric()
        name = f"mAP{100 * self.iou_threshold:g}"
        means, classes = {name: result.mean_ap}, {"AP": result.ap, "num_gt": result.num_gt}
        if self.expand_predictions:
            expanded = result if store.hierarchy.is_flat else metric(prediction_hierarchy=store.hierarchy)
            means[f"{name}_expanded"], classes["AP_expanded"] = expanded.mean_ap, expanded.ap
        means |= {f"{name}_{group}": mean_of_known(result.ap[members]) for group, members in bins.items()}
        facts = {"metric": result.metric, "num_images": result.num_images, "counts": result.counts}
        return MetricResult({"bbox": means}, classes, facts)


def check_options(iou_threshold: float, group_of_weight: float) -> None:
    """Raise ConfigError for an option of `evaluate_detections` that is out of range."""
    if not 0 < iou_threshold <= 1:
        raise ConfigError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
    if not 0 <= group_of_weight < np.inf:
        raise ConfigError(f"group_of_weight must be >= 0 and finite, got {group_of_weight}")


def expand_ground_truth(gt: GroundTruth, hierarchy: LabelHierarchy) -> GroundTruth:
    """Expand annotations as the challenge does.

    Boxes and "present" labels are repeated for each proper ancestor of their class, "absent" labels for each
    descendant. Nothing is de-duplicated.
    """
    rows, classes = hierarchy.expand(np.arange(len(gt)), gt.cls)
    present = np.flatnonzero(gt.label_present)
    absent = np.flatnonzero(~gt.label_present.astype(bool))
    up_rows, up_classes = hierarchy.expand(present, gt.label_cls[present])
    down_rows, down_classes = hierarchy.expand(absent, gt.label_cls[absent], up=False)
    label_rows = np.concatenate([up_rows, down_rows])
    return GroundTruth(
        image=gt.image[rows],
        cls=classes,
        box=gt.box[rows],
        group_of=gt.group_of[rows],
        label_image=gt.label_image[label_rows],
        label_cls=np.concatenate([up_classes, down_classes]),
        label_present=gt.label_present[label_rows],
    )


def evaluate_detections(
    ground_truth: GroundTruth,
    detections: Detections,
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    group_of_weight: float = 1.0,
    verified_filter: bool = True,
    prediction_hierarchy: LabelHierarchy | None = None,
) -> OpenImagesResult:
    """AP of every class and mAP by the Open Images challenge's rules.

    Arithmetic is float64; the columns may have any integer or float type. Besides the input, memory depends
    on the largest class (or about a million detections), not on the number of images.

    Args:
        ground_truth: annotations; `expand_ground_truth` first for the official number. All columns must be
            finite and in range, as the readers and stores make them.
        detections: what the detector said about these images.
        num_classes: K.
        iou_threshold: in (0, 1].
        group_of_weight: weight >= 0 of a group-of box: 1 in the challenge, 0 in the older V2 protocol.
        verified_filter: False counts detections of unverified classes as false positives (V2 protocol).
        prediction_hierarchy: if given, detections are repeated for all ancestors of their class.

    Raises:
        ConfigError: an option out of range.
    """
    check_options(iou_threshold, group_of_weight)
    gt, group_of = ground_truth, ground_truth.group_of.astype(bool)
    annotated = np.bincount(np.concatenate([gt.image, gt.label_image])) > 0
    key = gt.cls.astype(np.int64) * len(annotated) + gt.image
    label_key = gt.label_cls.astype(np.int64) * len(annotated) + gt.label_image
    single, group = _targets(key, gt.box, ~group_of), _targets(key, gt.box, group_of)
    # Repeated keys are harmless, and np.unique is slow.
    verified = np.sort(np.concatenate([key, label_key])) if verified_filter else None
    num_gt = np.bincount(gt.cls[~group_of], minlength=num_classes).astype(np.float64)
    num_gt += group_of_weight * np.bincount(gt.cls[group_of], minlength=num_classes)
    ap = np.full(num_classes, np.nan)
    dropped = ("image_not_annotated", "inverted", "class_not_verified", "over_limit")
    matched = ("true_positives", "absorbed_by_group_of", "false_positives", "groups_found")
    counts: dict[str, int] = dict.fromkeys(("detections", *dropped, *matched), 0)
    for classes, rows, row_classes in _class_batches(detections, num_classes, prediction_hierarchy):
        kept = _keep(detections, rows, row_classes, annotated, verified, counts)
        weights = _match(kept, single, group, iou_threshold, group_of_weight, counts)
        cls = kept.key // max(len(annotated), 1)
        counted = np.flatnonzero(~np.isnan(weights))
        # Sorting is stable: equal scores stay in the order (image, box).
        order = counted[np.lexsort((-kept.score[counted], cls[counted]))]
        edges = np.searchsorted(cls[order], np.arange(classes.start, classes.stop + 1))
        for label, start, end in zip(classes, edges[:-1], edges[1:], strict=True):
            ap[label] = average_precision(weights[order[start:end]], float(num_gt[label]))
    family = "OpenImagesDetectionChallenge" if verified_filter else "OpenImagesV2"
    name = f"{family}_Precision/mAP@{iou_threshold:g}IOU"
    return OpenImagesResult(name, mean_of_known(ap), ap, num_gt, int(annotated.sum()), counts)


def average_precision(weights: np.ndarray, num_gt: float) -> float:
    """Area under the precision-recall curve: all points, precision made monotone from the right (VOC 2010).

    Args:
        weights: (n,) weight of each detection from the highest score to the lowest: > 0 for a true positive
            (1, or the group-of weight), 0 for a false positive.
        num_gt: ground-truth count of the class.

    Returns:
        AP in [0, 1]; 0 without detections, NaN if `num_gt` is 0.
    """
    if num_gt <= 0:
        return float("nan")
    found = np.cumsum(weights)
    precision = found / (found + np.cumsum(weights <= 0))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(found / num_gt, prepend=0.0) * envelope))


def _class_batches(
    detections: Detections, num_classes: int, hierarchy: LabelHierarchy | None
) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
    """Ranges of classes with the rows of their detections and the class each row counts for."""
    source = target = np.arange(num_classes)
    if hierarchy is not None:
        source, target = hierarchy.expand(source, target)
    per_class = np.bincount(detections.cls, minlength=num_classes)
    per_target = np.bincount(target, weights=per_class[source], minlength=num_classes)
    for classes in class_ranges(per_target, _DETECTIONS_AT_ONCE):
        wanted = np.zeros(num_classes, dtype=bool)
        wanted[source[(target >= classes.start) & (target < classes.stop)]] = True
        rows = np.flatnonzero(wanted[detections.cls])
        row_classes = detections.cls[rows]
        if hierarchy is not None:
            rows, row_classes = hierarchy.expand(rows, row_classes)
            inside = (row_classes >= classes.start) & (row_classes < classes.stop)
            rows, row_classes = rows[inside], row_classes[inside]
        yield classes, rows, row_classes


class _Boxes(NamedTuple):
    """Boxes ordered by pair; boxes to be found keep the order of the ground truth within a pair."""

    key: np.ndarray  # (n,)
    box: np.ndarray  # (n, 4) float64 XYXY
    score: np.ndarray  # (n,) float64, descending within a pair; empty for boxes to be found


def _targets(key: np.ndarray, box: np.ndarray, mask: np.ndarray) -> _Boxes:
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(key[rows], kind="stable")]
    return _Boxes(key[rows], box[rows].astype(np.float64), np.zeros(0))


def _keep(
    detections: Detections,
    rows: np.ndarray,
    classes: np.ndarray,
    annotated: np.ndarray,
    verified: np.ndarray | None,
    counts: dict[str, int],
) -> _Boxes:
    """Rules 1 to 3: detections that count; those that do not are added to `counts`.

    Args:
        detections: all detections.
        rows: (n,) those of the classes at hand; a row may occur for several classes.
        classes: (n,) class for which each row counts.
        annotated: (number of images,) bool, images with an annotation row.
        verified: ascending keys of verified pairs; None: all are.
        counts: changed in place.
    """
    counts["detections"] += len(rows)
    image = detections.image[rows]
    read = (image >= 0) & (image < len(annotated))
    read[read] = annotated[image[read]]
    counts["image_not_annotated"] += len(rows) - int(read.sum())
    rows, key = rows[read], classes[read].astype(np.int64) * len(annotated) + image[read]
    box = detections.box[rows]
    valid = (box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3])
    counts["inverted"] += len(rows) - int(valid.sum())
    known = valid
    if verified is not None and len(key):
        start, end = np.searchsorted(verified, [key.min(), key.max() + 1])
        known = valid & np.isin(key, verified[start:end])
    counts["class_not_verified"] += int(valid.sum()) - int(known.sum())
    key, box = key[known], box[known].astype(np.float64)
    score = detections.score[rows[known]].astype(np.float64)
    order = _by_content(key, score, box)
    within = places_in_runs(key[order]) < MAX_DETECTIONS
    counts["over_limit"] += len(order) - int(within.sum())
    order = order[within]
    return _Boxes(key[order], box[order], score[order])


def _by_content(key: np.ndarray, score: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Order by key, then score descending, then box coordinates, which are compared only where needed."""
    order = np.lexsort((-score, key))
    tied = (np.diff(key[order]) == 0) & (np.diff(score[order]) == 0)
    member = np.zeros(len(order), dtype=bool)
    member[1:] |= tied
    member[:-1] |= tied
    rows = order[member]
    order[member] = rows[np.lexsort((*box[rows].T[::-1], -score[rows], key[rows]))]
    return order


def _match(
    kept: _Boxes,
    single: _Boxes,
    group: _Boxes,
    threshold: float,
    group_of_weight: float,
    counts: dict[str, int],
) -> np.ndarray:
    """Rules 4 to 6: (n,) weight of each detection; NaN marks those that were absorbed and do not count."""
    weights = np.zeros(len(kept.key))
    # Detections of a pair stand in score order, so the first one that chose a box is the one that gets it.
    weights[_first_of_each(_best_target(kept.key, kept.box, single, threshold))] = 1.0
    rest = np.flatnonzero(weights == 0)
    chosen = _best_target(kept.key[rest], kept.box[rest], group, threshold, by_detection_area=True)
    absorbed, best = rest[chosen >= 0], rest[_first_of_each(chosen)]
    counts["groups_found"] += len(best)
    counts["true_positives"] += len(kept.key) - len(rest)
    counts["absorbed_by_group_of"] += len(absorbed)
    counts["false_positives"] += len(rest) - len(absorbed)
    weights[absorbed] = np.nan
    weights[best[(kept.score[best] > 0) & (group_of_weight > 0)]] = group_of_weight
    return weights


def _first_of_each(targets: np.ndarray) -> np.ndarray:
    """Positions at which a target >= 0 occurs for the first time."""
    rows = np.flatnonzero(targets >= 0)
    return rows[np.unique(targets[rows], return_index=True)[1]]


def _best_target(
    key: np.ndarray, box: np.ndarray, targets: _Boxes, threshold: float, by_detection_area: bool = False
) -> np.ndarray:
    """(n,) index of the target of the same pair with the highest overlap, -1 if that is below the threshold.

    The overlap is that of `_overlap`; of equal ones the first counts.
    """
    result = np.full(len(key), -1, dtype=np.int64)
    start = np.searchsorted(targets.key, key)
    count = np.searchsorted(targets.key, key, side="right") - start
    candidates = np.flatnonzero(count)
    bounds = np.flatnonzero(np.diff(np.cumsum(count[candidates]) // _OVERLAPS_AT_ONCE)) + 1
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
