"""COCO's and LVIS's average precision of boxes and masks, and fixed AP, from columns; matching is hotcoco's.

COCO (Lin et al., ECCV 2014; package `pycocotools`): of a class in an image the best 100 detections count;
IoU thresholds 0.5, 0.55, ..., 0.95; interpolated precision at 101 recalls; area ranges in pixels. LVIS (Gupta
et al., CVPR 2019; package `lvis` 0.5.3) and fixed AP (Dave et al. 2021): docs/lvis_metric.md has the rules.

An object is gt of each of its labels and of their ancestors. Detections in a box around a group count neither
way (COCO's crowd), nor do those in the box of an object whose mask is missing when masks are evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hotcoco
import numpy as np

from longtail_det2.data.store import AnnotationStore
from longtail_det2.data.store_writer import FREQUENCIES
from longtail_det2.evaluation.detection_buffer import DetectionColumns
from longtail_det2.evaluation.ground_truth import MetricResult, StoreGroundTruth, class_ranges, mean_of_known
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.ragged import places_in_runs

Task = Literal["bbox", "segm"]

MEANS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Names of the columns of `average_precision`; s, m, l: of small, medium, large objects."""
LVIS_THRESHOLDS = (10, 100)
"""Most training images of a rare and of a common class (Gupta et al., LVIS, CVPR 2019)."""
_PAIRS_AT_ONCE = {"bbox": 1 << 18, "segm": 1 << 17}
"""Detections and objects matched together, about."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class COCOMetric:
    """COCO's metric.

    In a store with image-level labels, detections of classes that are neither annotated nor verified in an
    image are left out; without any such labels every class counts in every image.

    Attributes:
        tasks: "bbox", "segm" or both.
        max_detections: the best detections of a class in an image that count.
    """

    tasks: Sequence[Task] = ("bbox",)
    max_detections: int = 100
    name = "coco"

    def check(self, store: AnnotationStore) -> None:
        """Raise ConfigError where the store cannot be evaluated as asked."""
        check_tasks(self.tasks, store)
        if self.max_detections < 1:
            raise ConfigError(f"TEST.COCO.MAX_DETECTIONS must be at least 1, not {self.max_detections}")

    def measure(
        self, gt: StoreGroundTruth, found: DetectionColumns, bins: Mapping[str, np.ndarray], counts: Any
    ) -> MetricResult:
        """Return `MEANS` and "AP_<bin>" under "coco_bbox" and "coco_segm"; see `MetricResult`."""
        rows = np.arange(len(found))
        if len(gt.store.image_labels):
            rows = rows[np.isin(found.image * gt.store.num_classes + found.cls, gt.verified)]
        result = MetricResult({}, {"num_gt": gt.counts()})
        for task in self.tasks:
            values = average_precision(gt, found, rows, task, max_detections=self.max_detections)
            groups = {f"AP_{name}": classes for name, classes in bins.items()}
            _add(result, f"coco_{task}", values, MEANS, groups)
        return result


@dataclass(frozen=True)
class LVISMetric:
    """LVIS's metric and fixed AP.

    Where not all objects of a class are annotated, those of its ancestors are not either; a class verified
    absent has its descendants absent.

    Attributes:
        tasks: "bbox", "segm" or both.
        max_detections: the best detections of an image over all classes that count.
        fixed_ap_detections: for fixed AP, the best detections of a class over all images that count; 0: none.
    """

    tasks: Sequence[Task] = ("bbox",)
    max_detections: int = 300
    fixed_ap_detections: int = 10_000
    name = "lvis"

    def check(self, store: AnnotationStore) -> None:
        """Raise ConfigError where the store cannot be evaluated as asked."""
        check_tasks(self.tasks, store)
        if self.max_detections < 1 or self.fixed_ap_detections < 0:
            raise ConfigError(
                f"TEST.LVIS.MAX_DETECTIONS {self.max_detections} must be at least 1, and "
                f"TEST.LVIS.FIXED_AP_DETECTIONS {self.fixed_ap_detections} at least 0 (0: no fixed AP)"
            )

    def measure(
        self,
        gt: StoreGroundTruth,
        found: DetectionColumns,
        bins: Mapping[str, np.ndarray],
        counts: np.ndarray | None,
    ) -> MetricResult:
        """Return `MEANS`, APr, APc and APf under "lvis_bbox" and "lvis_segm"; see `MetricResult`.

        Fixed AP has AP, APr, APc and APf under "lvis_bbox_fixed" and "lvis_segm_fixed". The groups are LVIS's
        frequencies, not the bins; the training counts serve a store that does not know them.
        """
        store = gt.store
        frequency = class_frequencies(store, counts)
        groups = {f"AP{letter}": np.flatnonzero(frequency == letter) for letter in "rcf"}
        result = MetricResult({}, {"num_gt": gt.counts(), "frequency": frequency})
        rank = gt.image_rank[found.image]
        choices = {"": best_of(rank, found.score, rank, self.max_detections)}
        if self.fixed_ap_detections:
            choices["_fixed"] = best_of(found.cls, found.score, rank, self.fixed_ap_detections)
            self._warn_of_few(found, store.num_classes)
        verified = np.concatenate([gt.keys, gt.absent])
        known = np.isin(found.image * store.num_classes + found.cls, verified)
        for task in self.tasks:
            for kind, chosen in choices.items():
                values = average_precision(gt, found, chosen[known[chosen]], task, federated=True)
                _add(result, f"lvis_{task}{kind}", values, MEANS[:1] if kind else MEANS, groups)
        return result

    def _warn_of_few(self, found: DetectionColumns, num_classes: int) -> None:
        """As the authors' tool: fixed AP is too low where the detector gave fewer detections than count."""
        few = int((np.bincount(found.cls, minlength=num_classes) < self.fixed_ap_detections).sum())
        counts = np.diff(found.offsets)
        most = int(counts.max(initial=0))
        full = int((counts == most).sum())
        if few and most and full > 1:
            logger.warning(
                "fixed AP: %d of %d classes have fewer than %d detections. The most in an image are %d, in "
                "%d of %d images: if that is a limit of the detector (TEST.DETECTIONS_PER_IMAGE), more and "
                "a lower score threshold can raise fixed AP",
                *(few, num_classes, self.fixed_ap_detections, most, full, len(counts)),
            )


def check_tasks(tasks: Sequence[str], store: AnnotationStore) -> None:
    """Check that COCO's or LVIS's metric can evaluate a store.

    Raises:
        ConfigError: an unknown task, none, masks of a store that has none, or a store without image sizes.
    """
    unknown = sorted(set(tasks) - {"bbox", "segm"})
    if unknown or not tasks:
        raise ConfigError(f"TEST.TASKS may have 'bbox' and 'segm', not {unknown or 'nothing at all'}")
    if "segm" in tasks and not store.has_masks:
        raise ConfigError(
            f"{store.path} has no masks to evaluate with: make the store from a COCO- or LVIS-form file with "
            "segmentations, or evaluate boxes only (TEST.TASKS ('bbox',))"
        )
    if not store.has_image_sizes:
        raise ConfigError(
            f"{store.path} does not know the sizes of its images, which COCO's and LVIS's metrics need: "
            "prepare it again with the images, or evaluate by Open Images' metric alone "
            "(TEST.METRICS ('open_images',))"
        )


def average_precision(
    gt: StoreGroundTruth,
    found: DetectionColumns,
    rows: np.ndarray,
    task: Task,
    *,
    federated: bool = False,
    max_detections: int | None = None,
) -> np.ndarray:
    """(K, 6) AP in [0, 1] of every class, columns as `MEANS`; NaN without gt (in the area range).

    Args:
        gt: what there is.
        found: what was detected.
        rows: of `found`, those that count.
        task: "bbox" or "segm".
        federated: LVIS's rules 3 and 4; rules 1 and 2 are in `rows`.
        max_detections: the best detections of a class in an image that count; None: all.
    """
    num_classes = gt.store.num_classes
    result = np.full((num_classes, len(MEANS)), np.nan)
    per_class = np.bincount(gt.cls, minlength=num_classes)
    rows = rows[per_class[found.cls[rows]] > 0]
    per_class += np.bincount(found.cls[rows], minlength=num_classes)
    for classes in class_ranges(per_class, _PAIRS_AT_ONCE[task]):
        inside = np.zeros(num_classes, dtype=bool)
        inside[classes.start : classes.stop] = True
        pairs = np.flatnonzero(inside[gt.cls])
        if not len(pairs):
            continue
        chosen = rows[inside[found.cls[rows]]]
        precision = _precision(gt, found, pairs, chosen, task, federated, max_detections)
        by_area, at_50, at_75 = precision.mean(axis=(0, 1)), precision[0], precision[5]
        columns = (by_area[:, 0], at_50[..., 0].mean(axis=0), at_75[..., 0].mean(axis=0), by_area[:, 1:])
        result[np.unique(gt.cls[pairs])] = np.column_stack(columns)
    return result


def best_of(group: np.ndarray, score: np.ndarray, tie: np.ndarray, limit: int) -> np.ndarray:
    """Rows of the best `limit` of n detections of each group (image or class), ascending.

    Of equal scores the least `tie` goes first, then the first row.
    """
    order = np.lexsort((tie, -score, group))
    return np.sort(order[places_in_runs(group[order]) < limit])


def class_frequencies(store: AnnotationStore, train_counts: np.ndarray | None) -> np.ndarray:
    """(K,) LVIS's frequency of each class: "r", "c" or "f"; "" where neither the store nor counts tell.

    Args:
        store: its own frequencies go first.
        train_counts: (K,) training images of each class: at most 10 is rare, at most 100 common.
    """
    if store.class_frequencies is not None:
        return np.array(store.class_frequencies, dtype="U1")
    unknown = f"{store.path} knows no frequencies of its classes"
    if train_counts is None:
        logger.warning("%s, nor are training counts known: APr, APc and APf are NaN", unknown)
        return np.full(store.num_classes, "", dtype="U1")
    rules = "those in at most %d training images are rare, in at most %d common, in more frequent"
    logger.info(f"%s: {rules}", unknown, *LVIS_THRESHOLDS)
    places = np.searchsorted(LVIS_THRESHOLDS, np.asarray(train_counts), side="left")
    return np.array(FREQUENCIES, dtype="U1")[places]


def _add(
    result: MetricResult,
    name: str,
    values: np.ndarray,
    means: Sequence[str],
    groups: Mapping[str, np.ndarray],
) -> None:
    """Add what `average_precision` found: means over all classes, and of AP over groups of classes."""
    result.classes[name] = values[:, 0]
    result.summary[name] = {
        **{mean: mean_of_known(column) for mean, column in zip(means, values.T, strict=False)},
        **{group: mean_of_known(values[classes, 0]) for group, classes in groups.items()},
    }


def _precision(
    gt: StoreGroundTruth,
    found: DetectionColumns,
    pairs: np.ndarray,
    rows: np.ndarray,
    task: Task,
    federated: bool,
    max_detections: int | None,
) -> np.ndarray:
    """(10 IoUs, 101 recalls, classes of the pairs, 4 areas) interpolated precision; NaN without gt."""
    classes = np.unique(gt.cls[pairs])
    objects = gt.object[pairs]
    box = found.boxes_xywh(rows)
    area = box[:, 2] * box[:, 3]
    masks: list[Any] | None = None
    gt_masks: list[Any] | None = None
    if task == "segm":
        masks, gt_masks = found.masks(rows), gt.masks(objects)
        area = np.asarray(hotcoco.mask.area(masks), dtype=np.float64).reshape(-1)
    if federated:
        solid = np.flatnonzero(area > 0)
        rows, box, area = rows[solid], box[solid], area[solid]
        masks = masks and [masks[place] for place in solid.tolist()]
    truth = hotcoco.COCO.from_arrays(
        _image_entries(gt, np.union1d(gt.image[pairs], found.image[rows]), classes if federated else None),
        [{"id": k, "name": str(k), "frequency": "f"} for k in classes.tolist()],
        gt.image_rank[gt.image[pairs]],
        gt.cls[pairs],
        gt.box[objects],
        area=gt.area[objects],
        iscrowd=gt.ignored(objects, task).astype(np.int64),
        segmentation=gt_masks,
    )
    columns = (gt.image_rank[found.image[rows]], *box.T, found.score[rows], found.cls[rows])
    detections = truth.load_res(np.column_stack(columns).astype(np.float64), segmentation=masks)
    if masks:
        detections.update_anns(ids=np.arange(1, len(rows) + 1), area=area)
    if federated:
        detections = detections.cap_detections_per_image(None)
    evaluation = hotcoco.COCOeval(truth, detections, task, lvis_style=federated)
    evaluation.params.max_dets = [max_detections or max(len(rows), 1)]
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])[..., 0]
    return np.where(precision < 0, np.nan, precision)


def _image_entries(
    gt: StoreGroundTruth, images: np.ndarray, federated_classes: np.ndarray | None
) -> list[dict[str, Any]]:
    sizes = gt.store.image_sizes[images].tolist()
    entries: list[dict[str, Any]] = [
        {"id": rank, "height": height, "width": width}
        for rank, (height, width) in zip(gt.image_rank[images].tolist(), sizes, strict=True)
    ]
    if federated_classes is not None:
        lists = {"neg_category_ids": gt.absent, "not_exhaustive_category_ids": gt.not_exhaustive}
        for name, keys in lists.items():
            image, cls = np.divmod(keys, gt.store.num_classes)
            inside = np.isin(cls, federated_classes)
            image, cls = image[inside], cls[inside]
            ends = (np.searchsorted(image, images, side).tolist() for side in ("left", "right"))
            for entry, first, last in zip(entries, *ends, strict=True):
                entry[name] = cls[first:last].tolist()
    return entries
