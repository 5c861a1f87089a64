"""Evaluation of a model's outputs on one data set: one buffer, a list of metrics, one file of results."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from tabulate import tabulate

import longtail_det2
from longtail_det2.data.statistics import FREQUENCY_BINS, frequency_bins
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.coco_metric import COCOMetric, LVISMetric
from longtail_det2.evaluation.detection_buffer import DetectionBuffer, DetectionColumns
from longtail_det2.evaluation.ground_truth import MetricResult, StoreGroundTruth
from longtail_det2.evaluation.image_label_metric import (
    SCORES_FILE,
    ImageLabelMetric,
    ImageScores,
    ScoreBuffer,
    write_scores,
)
from longtail_det2.evaluation.openimages_io import Detections, write_detections
from longtail_det2.evaluation.openimages_metric import OpenImagesMetric
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer, write_json

logger = logging.getLogger(__name__)

Metric = OpenImagesMetric | COCOMetric | LVISMetric | ImageLabelMetric
METRICS: dict[str, Callable[..., Metric]] = {
    "open_images": OpenImagesMetric,
    "coco": COCOMetric,
    "lvis": LVISMetric,
    "image_labels": ImageLabelMetric,
}
"""Classes of metrics by the names that TEST.METRICS knows."""


class StoreEvaluator(DatasetEvaluator):
    """Metrics of a model's outputs on an annotation store.

    `evaluate` returns percentages by task and name, on the main process. In `output_dir` it writes

    - results.json: the same as fractions, and AP of each class, see `results_document`;
    - predictions.csv for the Open Images metric: the challenge's form, if the metric wants it;
    - coco_instances_results.json for COCO's and LVIS's metric: their form, with the ids of the data set;
    - scores.npz for the metric of image labels, see `write_scores`.

    Files appear only when they are complete.
    """

    def __init__(
        self,
        dataset: str | Path | AnnotationStore,
        metrics: Sequence[Metric],
        *,
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        frequency_thresholds: Sequence[float] | None = None,
    ) -> None:
        """Open the store.

        Args:
            dataset: registered data set with `store_path` in its metadata, directory of a store, or a store.
            metrics: evaluated in this order.
            output_dir: folder for the result files, made if absent; None writes nothing.
            train_counts: (K,) training images of each class, for head, medium and tail.
            frequency_thresholds: None or empty for thirds of the leaves, or see `frequency_bins`.

        Raises:
            ConfigError: a store that cannot be evaluated as asked, metrics of image labels and of objects
                together, or training counts of other classes.
            DataError: there is no usable store, or no room for masks.
        """
        self.store = open_store(dataset)
        self.metrics: Sequence[Any] = tuple(metrics)
        for metric in self.metrics:
            metric.check(self.store)
        self._name = dataset if isinstance(dataset, str) else self.store.path.name
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._train_counts = None if train_counts is None else np.asarray(train_counts)
        if self._train_counts is not None and self._train_counts.shape != (self.store.num_classes,):
            raise ConfigError(
                f"train_counts has shape {self._train_counts.shape}, but {self.store.path} has "
                f"{self.store.num_classes} classes: training and evaluation need the same classes"
            )
        self._bins = class_bins(self.store, self._train_counts, frequency_thresholds)
        with_masks = any("segm" in getattr(metric, "tasks", ()) for metric in self.metrics)
        of_images = [isinstance(metric, ImageLabelMetric) for metric in self.metrics]
        if any(of_images) and not all(of_images):
            raise ConfigError(
                "TEST.METRICS: 'image_labels' judges classifiers of images, the other metrics judge detectors"
            )
        self._buffer = (
            ScoreBuffer(self.store) if any(of_images) else DetectionBuffer(self.store, with_masks=with_masks)
        )

    def reset(self) -> None:
        """Forget all outputs."""
        self._buffer.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the outputs for some images; see `DetectionBuffer.add` and `ScoreBuffer.add` for errors."""
        for record, output in zip(inputs, outputs, strict=True):
            self._buffer.add(record, output)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather, evaluate, write the files; an empty dict on processes other than the main one."""
        found = self._buffer.gather()
        if found is None:
            return OrderedDict()
        gt = StoreGroundTruth(self.store)
        if not len(self.store.labels) and not isinstance(found, ImageScores):
            logger.warning("%s holds no object: every mean is NaN", self.store.path)
        measured = {m.name: m.measure(gt, found, self._bins, self._train_counts) for m in self.metrics}
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for one in measured.values():
            for task, means in one.summary.items():
                results[task] = {name: 100.0 * value for name, value in means.items()}
                table = tabulate([[f"{value:.2f}" for value in results[task].values()]], headers=list(means))
                logger.info("%s on %s, in percent:\n%s", task, self._name, table)
        if self._output_dir is not None:
            self._write(self._output_dir, gt, found, measured)
        return results

    def _write(
        self,
        folder: Path,
        gt: StoreGroundTruth,
        found: DetectionColumns | ImageScores,
        measured: Mapping[str, MetricResult],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(found, ImageScores):
            write_scores(folder / SCORES_FILE, self.store, found)
        elif any(getattr(metric, "write_predictions_csv", False) for metric in self.metrics):
            names = [name.decode() for name in self.store.image_ids.tolist()]
            columns = Detections(found.image, found.cls, found.score, found.shares())
            write_detections(folder / "predictions.csv", columns, self.store.class_ids, names)
        if {"coco", "lvis"} & set(measured) and isinstance(found, DetectionColumns):
            write_instances(folder / "coco_instances_results.json", gt, found)
        document = results_document(self.store, self.metrics, measured, self._bins, self._train_counts)
        write_json(folder / "results.json", document, indent=1)


def build_evaluators(
    dataset: str,
    *,
    metrics: Sequence[str] = (),
    tasks: Sequence[Any] = ("bbox",),
    open_images: Mapping[str, Any] | None = None,
    coco: Mapping[str, Any] | None = None,
    lvis: Mapping[str, Any] | None = None,
    image_labels: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    **options: Any,
) -> DatasetEvaluator:
    """Build the evaluator of a data set, for YAML and lazy configs.

    Args:
        dataset: registered data set, or directory of a store. Data registered with Detectron2's
            `register_coco_instances` get Detectron2's own COCO evaluator.
        metrics: names in `METRICS`; empty: follow the data, see `default_metrics`.
        tasks: "bbox", "segm" or both, of COCO's and LVIS's metric.
        open_images: arguments of `OpenImagesMetric`.
        coco: arguments of `COCOMetric` besides the tasks.
        lvis: arguments of `LVISMetric` besides the tasks.
        image_labels: arguments of `ImageLabelMetric`.
        output_dir: see `StoreEvaluator`.
        options: `train_counts` and `frequency_thresholds`, likewise.

    Raises:
        ConfigError: an unknown metric or argument, or see `StoreEvaluator`.
        DataError: there is no usable store.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ConfigError(f"TEST.METRICS: there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    metadata = MetadataCatalog.get(dataset) if dataset in MetadataCatalog.list() else None
    if metadata is not None and metadata.get("evaluator_type") == "coco" and not metadata.get("store_path"):
        folder = None if output_dir is None else str(output_dir)
        return COCOEvaluator(dataset, tasks=tuple(tasks), output_dir=folder, use_fast_impl=False)
    store = open_store(dataset)
    arguments = {
        "open_images": dict(open_images or {}),
        "coco": {"tasks": tuple(tasks), **(coco or {})},
        "lvis": {"tasks": tuple(tasks), **(lvis or {})},
        "image_labels": dict(image_labels or {}),
    }
    chosen: list[Metric] = []
    for name in tuple(metrics) or default_metrics(store, tasks):
        try:
            chosen.append(METRICS[name](**arguments[name]))
        except TypeError as error:
            raise ConfigError(f"dataloader.evaluator.{name}: {error}") from None
    logger.info("%s is evaluated by %s", dataset, ", ".join(metric.name for metric in chosen))
    return StoreEvaluator(store if metadata is None else dataset, chosen, output_dir=output_dir, **options)


def default_metrics(store: AnnotationStore, tasks: Sequence[str] = ("bbox",)) -> tuple[str, ...]:
    """Choose the metrics that fit the data.

    LVIS's files get LVIS's metric, COCO's get COCO's. Open Images' data get the metric of Open Images, and so
    do others with a hierarchy, and COCO's with image-level labels, beside their own. Without image-level
    labels the Open Images metric judges a class only in images that contain it, so that it forgives false
    positives; it therefore never stands alone there. Masks, which it does not judge, get COCO's metric.
    Image labels without objects get their own.
    """
    if store.form == "image_labels":
        return ("image_labels",)
    labelled = len(store.image_labels) > 0
    if store.form in ("lvis", "coco"):
        official = store.has_hierarchy or (labelled and store.form == "coco")
        return ("open_images", store.form) if official else (store.form,)
    judged_too_kindly = not labelled and store.has_image_sizes
    return ("open_images", "coco") if "segm" in tasks or judged_too_kindly else ("open_images",)


def class_bins(
    store: AnnotationStore, train_counts: np.ndarray | None, thresholds: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Class indices by name: "leaves" and, if counts are given, the leaves in "head", "medium", "tail"."""
    leaves = store.hierarchy.leaves
    bins = {"leaves": leaves}
    if train_counts is not None:
        codes = frequency_bins(train_counts[leaves], thresholds)
        bins.update({name: leaves[codes == code] for code, name in enumerate(FREQUENCY_BINS)})
    return bins


def results_document(
    store: AnnotationStore,
    metrics: Sequence[Metric],
    measured: Mapping[str, MetricResult],
    bins: Mapping[str, np.ndarray],
    train_counts: np.ndarray | None,
) -> dict[str, Any]:
    """Make the content of results.json; numbers that do not exist are null.

    Returns:
        "summary": means as fractions in [0, 1] by task and name. "metrics": options and counts of each.
        "classes": an entry per class in class-index order: id (text), name, is_leaf, train_images,
        frequency_bin ("head", "medium", "tail"; null for inner classes), num_gt; of the Open Images metric AP
        and AP_expanded; of COCO's and LVIS's metric AP by task ("coco_bbox", ...), of LVIS's also frequency.
    """
    leaves = set(bins["leaves"].tolist())
    bin_of_class = {int(k): name for name in FREQUENCY_BINS for k in bins.get(name, ())}
    columns: dict[str, np.ndarray] = {}
    for one in measured.values():
        columns = {**one.classes, **columns}
    classes = [
        {
            "id": store.class_ids[k],
            "name": store.class_names[k],
            "is_leaf": k in leaves,
            "train_images": None if train_counts is None else int(train_counts[k]),
            "frequency_bin": bin_of_class.get(k),
            **{name: _json_value(values[k].item()) for name, values in columns.items()},
        }
        for k in range(store.num_classes)
    ]
    return {
        "unit": "fractions in [0, 1]",
        "longtail_det2": longtail_det2.__version__,
        "num_images": len(store),
        "metrics": {m.name: {"options": vars(m), **measured[m.name].facts} for m in metrics},
        "summary": {
            task: {name: _json_value(value) for name, value in means.items()}
            for one in measured.values()
            for task, means in one.summary.items()
        },
        "classes": classes,
    }


def write_instances(path: Path, gt: StoreGroundTruth, found: DetectionColumns) -> None:
    """Write all detections in COCO's and LVIS's result form, in the order of `gt.image_rank`, atomically."""
    store = gt.store
    classes = [json.dumps(_file_id(name)) for name in store.class_ids]
    seen: list[bytes] = store.image_ids[found.seen].tolist()
    separator = ""
    with atomic_writer(path) as stream:
        stream.write("[")
        for place in np.argsort(gt.image_rank[found.seen]).tolist():
            rows = np.arange(*found.offsets[place : place + 2])
            name = json.dumps(_file_id(seen[place].decode()))
            masks = found.masks(rows) if found.has_masks else [None] * len(rows)
            columns = (column[rows].tolist() for column in (found.cls, found.score))
            for cls, score, (x, y, w, h), mask in zip(
                *columns, found.boxes_xywh(rows).tolist(), masks, strict=True
            ):
                segmentation = ""
                if mask is not None:
                    mask["counts"] = mask["counts"].decode()
                    segmentation = f', "segmentation": {json.dumps(mask)}'
                # Nine digits give single precision back.
                stream.write(
                    f'{separator}{{"image_id": {name}, "category_id": {classes[cls]}, "bbox": '
                    f'[{x:.9g}, {y:.9g}, {w:.9g}, {h:.9g}], "score": {score:.9g}{segmentation}}}'
                )
                separator = ",\n"
        stream.write("]\n")


def open_store(dataset: str | Path | AnnotationStore) -> AnnotationStore:
    """Open the store of a registered data set (ConfigError if it has none), or in a directory."""
    if isinstance(dataset, AnnotationStore):
        return dataset
    if dataset not in MetadataCatalog.list():
        return AnnotationStore(dataset)
    path = MetadataCatalog.get(str(dataset)).get("store_path")
    if path is None:
        raise ConfigError(
            f"data set {dataset!r} has no annotation store: register it with "
            "longtail_det2.data.datasets.builtin.register_store"
        )
    return AnnotationStore(path)


def _file_id(text: str) -> int | str:
    """An id as the data set's file has it: ids that were numbers are numbers again."""
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _json_value(value: Any) -> Any:
    """A value for JSON, which knows no NaN; "" is unknown, too."""
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value
