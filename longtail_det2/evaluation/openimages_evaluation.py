"""Detectron2 evaluator for annotation stores: the Open Images metric over several processes."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

import longtail_det2
from longtail_det2.data.statistics import FREQUENCY_BINS, frequency_bins
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.model_outputs import class_facts, number_or_null
from longtail_det2.evaluation.openimages_io import (
    ground_truth_from_store,
    write_detections,
)
from longtail_det2.evaluation.openimages_metric import (
    Detections,
    OpenImagesResult,
    evaluate_detections,
    expand_ground_truth,
)
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer

logger = logging.getLogger(__name__)


class OpenImagesEvaluator(DatasetEvaluator):
    """The official metric on a model's outputs, with the ground truth of an annotation store.

    Boxes and image-level labels are expanded by the store's hierarchy; predictions are scored as given and,
    for a second number, expanded too. Only images of the store count; an image that several processes were
    given (padding of the last batch) counts once, the lowest rank first.

    `evaluate` returns, on the main process, percentages under "bbox": "mAP50", "mAP50_expanded",
    "mAP50_leaves" (mean over the classes without children) and, if training counts are known, "mAP50_head",
    "mAP50_medium", "mAP50_tail" (over the leaves of each frequency group). Numbers of other IoU thresholds
    are named accordingly. A mean over no class with ground truth is NaN.

    In `output_dir` it writes metrics.json (fractions, see `metrics_document`) and predictions.csv (the
    challenge's form; scripts/evaluate_open_images.py reads it). Both appear only when complete.
    """

    def __init__(
        self,
        dataset: str | Path | AnnotationStore,
        *,
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        iou_threshold: float = 0.5,
        group_of_weight: float = 1.0,
        expand_predictions: bool = True,
        write_predictions_csv: bool = True,
        frequency_thresholds: Sequence[float] | None = None,
        distributed: bool = True,
    ) -> None:
        """Opens the store.

        Args:
            dataset: registered data set with `store_path` in its metadata, directory of a store, or a store.
            output_dir: folder for the result files, made if absent; None writes nothing.
            train_counts: (K,) training images of each class, for head, medium and tail.
            iou_threshold: in (0, 1].
            group_of_weight: weight of a group-of box.
            expand_predictions: compute the second number.
            write_predictions_csv: False leaves predictions.csv out.
            frequency_thresholds: None or empty for thirds of the leaves, or (low, high); see
                `frequency_bins`.
            distributed: gather from all processes; False evaluates this process alone.

        Raises:
            DataError: there is no usable store.
            ConfigError: `train_counts` has another length than the store has classes.
        """
        self.store, self._name = open_store(dataset), name_of_dataset(dataset)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._iou_threshold = iou_threshold
        self._group_of_weight = group_of_weight
        self._expand_predictions = expand_predictions
        self._write_csv = write_predictions_csv
        self._distributed = distributed
        self._train_counts = None if train_counts is None else np.asarray(train_counts)
        if self._train_counts is not None and self._train_counts.shape != (self.store.num_classes,):
            raise ConfigError(
                f"train_counts has shape {self._train_counts.shape}, but {self.store.path} has "
                f"{self.store.num_classes} classes: training and evaluation need the same classes"
            )
        self._groups = class_groups(self.store, self._train_counts, frequency_thresholds)
        self._image_ids = [name.decode() for name in self.store.image_ids.tolist()]
        self._index = {name: i for i, name in enumerate(self._image_ids)}
        self.reset()

    def reset(self) -> None:
        """Forgets all outputs."""
        self._rows: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._not_finite = 0
        self._not_in_store = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keeps 24 bytes per detection.

        Args:
            inputs: dataset dicts with "image_id" and "height", "width" of the original image.
            outputs: `{"instances": Instances}` in pixels of the original image.
        """
        for one, output in zip(inputs, outputs, strict=True):
            index = self._index.get(str(one["image_id"]))
            if index is None:
                self._not_in_store += 1
                continue
            instances = output["instances"].to("cpu")
            height = one.get("height", instances.image_size[0])
            width = one.get("width", instances.image_size[1])
            box = instances.pred_boxes.tensor.detach().double().numpy() / (width, height, width, height)
            score = instances.scores.detach().float().numpy()
            finite = np.isfinite(box).all(axis=1) & np.isfinite(score)
            self._not_finite += int((~finite).sum())
            cls = instances.pred_classes.numpy().astype(np.int32)
            self._rows.append((index, box[finite].astype(np.float32), score[finite], cls[finite]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gathers, evaluates, writes the files; an empty dict on processes other than the main one."""
        packed = _pack(self._rows, self._not_finite, self._not_in_store)
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            parts = comm.gather(packed, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        else:
            parts = [packed]
        detections, processed = merge_parts(parts)
        self._warn(parts, processed)
        result, expanded = self._measure(detections)
        summary = summarize(result, expanded, self._groups, self._iou_threshold)
        if self._output_dir is not None:
            document = metrics_document(self.store, result, expanded, self._groups, self._train_counts)
            self._write(
                {**document, "summary": {name: number_or_null(value) for name, value in summary.items()}},
                detections,
            )
        logger.info("Open Images metric on %s:\n%s", self._name, _table(summary, result, self._groups))
        return OrderedDict(bbox={name: 100.0 * value for name, value in summary.items()})

    def _measure(self, detections: Detections) -> tuple[OpenImagesResult, OpenImagesResult | None]:
        """The official number, and the one with expanded predictions if wanted."""
        hierarchy = self.store.hierarchy
        metric = partial(
            evaluate_detections,
            expand_ground_truth(ground_truth_from_store(self.store), hierarchy),
            detections,
            self.store.num_classes,
            iou_threshold=self._iou_threshold,
            group_of_weight=self._group_of_weight,
        )
        result = metric()
        if not (result.num_gt > 0).any():
            logger.warning("%s holds no object: the metric is NaN", self.store.path)
        if not self._expand_predictions:
            return result, None
        return result, result if hierarchy.is_flat else metric(prediction_hierarchy=hierarchy)

    def _warn(self, parts: Sequence[Mapping[str, Any]], processed: np.ndarray) -> None:
        not_in_store = sum(part["not_in_store"] for part in parts)
        if not_in_store:
            logger.warning("%d outputs are of images that are not in %s", not_in_store, self.store.path)
        not_finite = sum(part["not_finite"] for part in parts)
        if not_finite:
            logger.warning("%d detections with a box or score that is not finite were dropped", not_finite)
        missing = len(self.store) - len(processed)
        if missing:
            logger.warning(
                "%d of %d images of the store had no output: their objects count as missed",
                missing,
                len(self.store),
            )

    def _write(self, document: dict[str, Any], detections: Detections) -> None:
        assert self._output_dir is not None
        self._output_dir.mkdir(parents=True, exist_ok=True)
        if self._write_csv:
            write_detections(
                self._output_dir / "predictions.csv", detections, self.store.class_ids, self._image_ids
            )
        options = {
            "iou_threshold": self._iou_threshold,
            "group_of_weight": self._group_of_weight,
            "expand_predictions": self._expand_predictions,
        }
        with atomic_writer(self._output_dir / "metrics.json") as stream:
            json.dump({**document, "options": options}, stream, indent=1, allow_nan=False)
            stream.write("\n")


def class_groups(
    store: AnnotationStore, train_counts: np.ndarray | None, thresholds: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Class indices by name: "leaves" and, if counts are given, the leaves in "head", "medium", "tail"."""
    leaves = store.hierarchy.leaves
    groups = {"leaves": leaves}
    if train_counts is not None:
        codes = frequency_bins(train_counts[leaves], thresholds)
        groups.update({name: leaves[codes == code] for code, name in enumerate(FREQUENCY_BINS)})
    return groups


def merge_parts(parts: Sequence[Mapping[str, Any]]) -> tuple[Detections, np.ndarray]:
    """Joins what the processes gathered.

    Args:
        parts: of each rank "image" and "count" (m,) of the images it processed, in order, and "box", "score",
            "cls" of all their detections, one image after the other.

    Returns:
        Detections of the first occurrence of each image, by image and descending score; the sorted indices
        of all processed images.
    """
    joined = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("image", "count", "box", "score", "cls")
    }
    processed, first = np.unique(joined["image"], return_index=True)
    chosen = np.zeros(len(joined["image"]), dtype=bool)
    chosen[first] = True
    image = np.repeat(joined["image"], joined["count"])
    rows = np.flatnonzero(np.repeat(chosen, joined["count"]))
    rows = rows[np.lexsort((-joined["score"][rows], image[rows]))]
    return Detections(image[rows], joined["cls"][rows], joined["score"][rows], joined["box"][rows]), processed


def summarize(
    result: OpenImagesResult,
    expanded: OpenImagesResult | None,
    groups: Mapping[str, np.ndarray],
    iou_threshold: float,
) -> dict[str, float]:
    """Means in [0, 1] by name ("mAP50", "mAP50_expanded", "mAP50_leaves", ...); NaN: no class with truth."""
    name = f"mAP{100 * iou_threshold:g}"
    summary = {name: result.mean_ap}
    if expanded is not None:
        summary[f"{name}_expanded"] = expanded.mean_ap
    for group, classes in groups.items():
        ap = result.ap[classes]
        ap = ap[~np.isnan(ap)]
        summary[f"{name}_{group}"] = float(ap.mean()) if len(ap) else math.nan
    return summary


def groups_of_classes(groups: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Class index -> "head", "medium" or "tail", of those that are in one; see :func:`class_groups`."""
    return {int(k): name for name in FREQUENCY_BINS for k in groups.get(name, ())}


def metrics_document(
    store: AnnotationStore,
    result: OpenImagesResult,
    expanded: OpenImagesResult | None,
    groups: Mapping[str, np.ndarray],
    train_counts: np.ndarray | None,
) -> dict[str, Any]:
    """What metrics.json holds about the classes; numbers that do not exist are null.

    Returns:
        "classes" has one entry per class in class-index order: id, name, AP and AP_expanded (predictions
        expanded too) in [0, 1], num_gt, train_images, is_leaf, group ("head", "medium", "tail"; null for
        inner classes).
    """
    group_of_class = groups_of_classes(groups)
    classes = [
        {
            **facts,
            "id": store.class_ids[i],
            "AP": number_or_null(result.ap[i]),
            "AP_expanded": None if expanded is None else number_or_null(expanded.ap[i]),
            "num_gt": float(result.num_gt[i]),
            "group": group_of_class.get(i),
        }
        for i, facts in enumerate(class_facts(store, train_counts))
    ]
    return {
        "metric": result.metric,
        "unit": "AP and mAP are fractions in [0, 1]",
        "longtail_det2": longtail_det2.__version__,
        "num_images": result.num_images,
        "counts": result.counts,
        "classes": classes,
    }


def open_store(dataset: str | Path | AnnotationStore) -> AnnotationStore:
    """The store of a registered data set, or in a directory, or itself.

    Raises:
        ConfigError: a registered data set that has no store.
        DataError: there is no usable store.
    """
    if isinstance(dataset, AnnotationStore):
        return dataset
    if isinstance(dataset, str) and dataset in MetadataCatalog.list():
        path = MetadataCatalog.get(dataset).get("store_path")
        if path is None:
            raise ConfigError(
                f"data set {dataset!r} has no annotation store: register it with "
                "longtail_det2.data.datasets.builtin.register_store"
            )
        return AnnotationStore.open(path)
    return AnnotationStore.open(dataset)


def name_of_dataset(dataset: str | Path | AnnotationStore) -> str:
    """What the log calls a data set: its registered name, else the folder of its store."""
    if isinstance(dataset, str) and dataset in MetadataCatalog.list():
        return dataset
    return (dataset.path if isinstance(dataset, AnnotationStore) else Path(dataset)).name


def _pack(
    rows: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]], not_finite: int, not_in_store: int
) -> dict[str, Any]:
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    columns = list(zip(*(row[1:] for row in rows), strict=True)) if rows else [(column,) for column in empty]
    box, score, cls = (np.concatenate(column) for column in columns)
    return {
        "image": np.array([row[0] for row in rows], dtype=np.int32),
        "count": np.array([len(row[2]) for row in rows], dtype=np.int64),
        "box": box,
        "score": score,
        "cls": cls,
        "not_finite": not_finite,
        "not_in_store": not_in_store,
    }


def _table(summary: Mapping[str, float], result: OpenImagesResult, groups: Mapping[str, np.ndarray]) -> str:
    """Plain table: each mean in percent, with the number of classes behind it."""
    with_truth = result.num_gt > 0
    rows = []
    for name, value in summary.items():
        members = groups.get(name.partition("_")[2])
        classes = with_truth.sum() if members is None else with_truth[members].sum()
        rows.append((name, f"{100 * value:.2f}", int(classes)))
    return tabulate(
        rows, headers=("metric", "%", "classes"), disable_numparse=True, colalign=("left", "right")
    )
