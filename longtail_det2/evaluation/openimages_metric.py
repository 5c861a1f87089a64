"""The Open Images detection-challenge metric (2019) on plain arrays.

Shape glossary: G ground-truth boxes, L image-level labels, D detections, K classes, T target boxes (single or
group-of) of the (image, class) pairs at hand. Boxes are XYXY in any unit that is the same for gt and
detections (Open Images: normalised to [0, 1]). A "pair" is one class in one image.

The rules, in the order in which they apply (docs/openimages_metric.md says where they are from):

1. Only images with at least one annotation row (box or image-level label) are read.
2. Detections with xmin >= xmax or ymin >= ymax are dropped.
3. A detection counts only if its class is verified in its image: there is a box or an image-level label,
   present or absent, of that class. (`verified_filter=False`: every class counts everywhere.)
4. At most `max_detections` detections of a pair are kept, those with the highest scores. No suppression.
5. Each detection looks only at the single box of its pair with the highest IoU (the first one on ties). With
   IoU >= threshold it is a true positive if it is the first one, by score, that chose this box.
   No second-best box is tried.
6. Each detection that is no true positive looks at the group-of box of its pair with the highest
   intersection / detection area (the first one on ties). At >= threshold it is absorbed: no false positive.
   Each group-of box that absorbed something counts once, as a true positive of weight `group_of_weight` with
   the highest absorbed score, provided that this score and the weight are > 0.
7. All other detections are false positives.
8. Ground-truth count of a class: single boxes + `group_of_weight` x group-of boxes.
9. AP: area under the precision-recall curve with the precision envelope, at all points; 0 without
   detections, NaN without ground truth. mAP: mean over the classes that have ground truth.

Equal scores: the reference implementation leaves their order undefined. Here they are ordered by image index,
then by box coordinates, so that results do not depend on the order of the detections. ("The first one on
ties" of rules 5 and 6 is the order of the ground-truth rows, as in the reference.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.ground_truth import MetricResult, StoreGroundTruth
from longtail_det2.evaluation.openimages_matching import (
    COUNT_NAMES,
    ClassesGroundTruth,
    Detections,
    GroundTruth,
    KeptDetections,
    MatchOptions,
    match_detections,
)
from longtail_det2.utils.errors import DataError

if TYPE_CHECKING:
    from longtail_det2.evaluation.detection_buffer import DetectionColumns

__all__ = [
    "Detections",
    "GroundTruth",
    "OpenImagesMetric",
    "OpenImagesResult",
    "average_precision",
    "evaluate_detections",
    "expand_ground_truth",
]

_DETECTIONS_AT_ONCE = 1 << 20
"""Detections matched together: classes are processed in batches of about this many (one class at least)."""


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
        MatchOptions(self.iou_threshold, self.group_of_weight)

    def measure(
        self, gt: StoreGroundTruth, found: DetectionColumns, bins: Mapping[str, np.ndarray], counts: Any
    ) -> MetricResult:
        """Evaluate.

        Args:
            gt: what there is.
            found: what was detected.
            bins: class indices by name, for the means "mAP50_<name>".
            counts: unused.

        Returns:
            "mAP50", "mAP50_expanded" and the mean of each bin under "bbox"; with another IoU threshold the
            names say so.
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
        means, classes = {name: result.mean_ap}, {"AP": result.ap}
        if self.expand_predictions:
            expanded = result if store.hierarchy.is_flat else metric(prediction_hierarchy=store.hierarchy)
            means[f"{name}_expanded"], classes["AP_expanded"] = expanded.mean_ap, expanded.ap
        for group, members in bins.items():
            ap = result.ap[members][result.num_gt[members] > 0]
            means[f"{name}_{group}"] = float(ap.mean()) if len(ap) else float("nan")
        facts = {"metric": result.metric, "num_images": result.num_images, "counts": result.counts}
        return MetricResult({"bbox": means}, {**classes, "num_gt": result.num_gt}, facts)


def expand_ground_truth(gt: GroundTruth, hierarchy: LabelHierarchy) -> GroundTruth:
    """The official expansion of annotations.

    Every box is repeated for each proper ancestor of its class. "Present" labels are repeated for each
    ancestor, "absent" ones for each descendant. Nothing is de-duplicated: a box annotated both as child and
    as parent becomes two equal boxes of the parent, of which only one can be found.
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
    use_image_labels: bool = True,
    verified_filter: bool = True,
    max_detections: int = 10_000,
    prediction_hierarchy: LabelHierarchy | None = None,
) -> OpenImagesResult:
    """AP of every class and mAP by the Open Images challenge's rules (see the head of this file).

    Arithmetic is float64; the columns may have any integer or float type. Besides the input, memory depends
    on the largest class (or about a million detections), not on the number of images.

    Args:
        ground_truth: annotations; `expand_ground_truth` first for the official number.
        detections: what the detector said about these images.
        num_classes: K.
        iou_threshold: in (0, 1].
        group_of_weight: weight >= 0 of a group-of box: 1 in the challenge, 0 in the older V2 protocol.
        use_image_labels: False forgets the image-level labels: classes are verified by boxes alone, and
            images without boxes are not read.
        verified_filter: False counts detections of unverified classes as false positives (V2 protocol).
        max_detections: cap per class and image.
        prediction_hierarchy: if given, detections are repeated for all ancestors of their class.

    Raises:
        DataError: classes out of range, negative image indices of annotations, numbers that are not finite,
            or inverted ground-truth boxes.
        ConfigError: an option out of range.
    """
    options = MatchOptions(iou_threshold, group_of_weight, use_image_labels, verified_filter, max_detections)
    _check_values(ground_truth, detections, num_classes)
    annotated = _annotated_images(ground_truth, options)
    group_of = ground_truth.group_of.astype(bool)
    num_gt = np.bincount(ground_truth.cls[~group_of], minlength=num_classes).astype(np.float64)
    num_gt += group_of_weight * np.bincount(ground_truth.cls[group_of], minlength=num_classes)
    ap = np.full(num_classes, np.nan)
    counts: dict[str, int] = dict.fromkeys(COUNT_NAMES, 0)
    for classes, rows, row_classes in _class_batches(detections, num_classes, prediction_hierarchy):
        gt = ClassesGroundTruth.select(ground_truth, classes, len(annotated), options)
        kept = KeptDetections.select(detections, rows, row_classes, annotated, gt, options, counts)
        weights = match_detections(kept, gt, options, counts)
        _fill_ap(ap, num_gt, classes, kept, weights)
    return OpenImagesResult(
        metric=_metric_name(options),
        mean_ap=float(np.mean(ap[num_gt > 0])) if (num_gt > 0).any() else float("nan"),
        ap=ap,
        num_gt=num_gt,
        num_images=int(annotated.sum()),
        counts=counts,
    )


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
    if len(weights) == 0:
        return 0.0
    found = np.cumsum(weights)
    recall = found / num_gt
    precision = found / (found + np.cumsum(weights <= 0))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _metric_name(options: MatchOptions) -> str:
    family = "OpenImagesDetectionChallenge" if options.verified_filter else "OpenImagesV2"
    return f"{family}_Precision/mAP@{options.iou_threshold:g}IOU"


def _check_values(gt: GroundTruth, detections: Detections, num_classes: int) -> None:
    named = {"ground truth": gt.cls, "image-level labels": gt.label_cls, "detections": detections.cls}
    for name, cls in named.items():
        if len(cls) and not (int(cls.min()) >= 0 and int(cls.max()) < num_classes):
            wrong = int(cls.min()) if cls.min() < 0 else int(cls.max())
            raise DataError(f"{name}: class index {wrong} is outside [0, {num_classes})")
    for name, image in (("ground truth", gt.image), ("image-level labels", gt.label_image)):
        if len(image) and image.min() < 0:
            raise DataError(f"{name}: image index {int(image.min())} is negative")
    columns = (
        ("ground truth", "box", gt.box),
        ("detections", "box", detections.box),
        ("detections", "score", detections.score),
    )
    for name, column, values in columns:
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            raise DataError(f"{name}: {column} of row {row} is not finite: {values[row]}")
    inverted = (gt.box[:, 0] > gt.box[:, 2]) | (gt.box[:, 1] > gt.box[:, 3])
    if inverted.any():
        row = int(np.argmax(inverted))
        raise DataError(f"ground truth: box of row {row} has min > max: {gt.box[row]}")


def _annotated_images(gt: GroundTruth, options: MatchOptions) -> np.ndarray:
    """(number of images,) bool: images with at least one annotation row."""
    images = [gt.image, gt.label_image] if options.use_image_labels else [gt.image]
    annotated = np.zeros(max((int(i.max()) + 1 for i in images if len(i)), default=0), dtype=bool)
    for image in images:
        annotated[image] = True
    return annotated


def _class_batches(
    detections: Detections, num_classes: int, hierarchy: LabelHierarchy | None
) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
    """Ranges of classes with the rows of their detections and the class each row counts for."""
    per_class = np.bincount(detections.cls, minlength=num_classes)
    source = target = np.arange(num_classes)
    if hierarchy is not None:
        source, target = hierarchy.expand(source, target)
        per_class = np.bincount(target, weights=per_class[source], minlength=num_classes)
    bucket = np.cumsum(per_class) // _DETECTIONS_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(bucket)) + 1).tolist(), num_classes]
    for first, last in itertools.pairwise(edges):
        wanted = np.zeros(num_classes, dtype=bool)
        wanted[source[(target >= first) & (target < last)]] = True
        rows = np.flatnonzero(wanted[detections.cls])
        row_classes = detections.cls[rows]
        if hierarchy is not None:
            rows, row_classes = hierarchy.expand(rows, row_classes)
            inside = (row_classes >= first) & (row_classes < last)
            rows, row_classes = rows[inside], row_classes[inside]
        yield range(first, last), rows, row_classes


def _fill_ap(
    ap: np.ndarray, num_gt: np.ndarray, classes: range, kept: KeptDetections, weights: np.ndarray
) -> None:
    """Rule 9 for a range of classes. Sorting is stable: equal scores stay in the order (image, box)."""
    counted = np.flatnonzero(~np.isnan(weights))
    cls, score = kept.cls[counted], kept.score[counted]
    order = np.lexsort((-score, cls))
    weights, cls = weights[counted[order]], cls[order]
    edges = np.searchsorted(cls, np.arange(classes.start, classes.stop + 1))
    for i, label in enumerate(classes):
        ap[label] = average_precision(weights[edges[i] : edges[i + 1]], float(num_gt[label]))
