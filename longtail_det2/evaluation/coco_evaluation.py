"""COCO's average precision of boxes and masks, with the multi-label truth of an annotation store."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster
from tabulate import tabulate

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.model_outputs import (
    class_facts,
    fractions,
    json_id,
    log_coverage,
    mean_of_known,
    number_or_null,
    read_instances,
)
from longtail_det2.evaluation.openimages_evaluation import (
    class_groups,
    groups_of_classes,
    name_of_dataset,
    open_store,
)
from longtail_det2.evaluation.store_truth import (
    StoreTruth,
    check_tasks,
    truth_of_store,
    whole_box_runs,
)
from longtail_det2.utils.io import atomic_writer

Task = Literal["bbox", "segm"]

logger = logging.getLogger(__name__)


class COCOStoreEvaluator(DatasetEvaluator):
    """COCO's metric on a model's boxes and masks.

    An object is ground truth for each of its labels and their ancestors. A box around a group is what COCO
    calls a crowd: detections in it count neither way. So does an object without a mask when masks are
    evaluated. In a store with image-level labels, as in Open Images and LVIS, detections of classes that are
    neither annotated nor verified in an image are left out; without any such labels, as in COCO, every class
    counts in every image.

    `evaluate` returns percentages under "coco_bbox" and "coco_segm": COCO's AP (mean over the IoU thresholds
    0.5, 0.55, ..., 0.95 and the classes), AP50, AP75, APs, APm, APl (by area in pixels of the image), and AP
    over "leaves", "head", "medium" and "tail" classes. In `output_dir` it writes coco_instances_results.json
    (COCO's form, with the ids of the data set) and coco_metrics.json (fractions, with each class's AP).
    """

    def __init__(
        self,
        dataset: str | Path | AnnotationStore,
        *,
        tasks: Sequence[Task] = ("bbox", "segm"),
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        frequency_thresholds: Sequence[float] | None = None,
        max_detections: int = 100,
        distributed: bool = True,
    ) -> None:
        """Opens the store.

        Args:
            dataset: registered data set, directory of a store, or a store.
            tasks: "bbox", "segm" or both.
            output_dir: folder for the result files, made if absent; None writes nothing.
            train_counts: (K,) training images of each class, for head, medium and tail.
            frequency_thresholds: see `frequency_bins`.
            max_detections: the best so many detections of a class in an image count.
            distributed: gather from all processes.

        Raises:
            ConfigError: an unknown task, or masks of a store that has none.
            DataError: there is no usable store.
        """
        self.store, self._name = open_store(dataset), name_of_dataset(dataset)
        check_tasks(tasks, self.store, "COCO")
        self._tasks = tuple(tasks)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._train_counts = None if train_counts is None else np.asarray(train_counts)
        self._groups = class_groups(self.store, self._train_counts, frequency_thresholds)
        self._max_detections = max_detections
        self._distributed = distributed
        self._index = {name.decode(): i for i, name in enumerate(self.store.image_ids.tolist())}
        self.reset()

    def reset(self) -> None:
        """Forgets all outputs."""
        self._found: dict[int, list[dict[str, Any]]] = {}
        self._not_in_store = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keeps boxes, scores and run-length masks.

        Args:
            inputs: dataset dicts with "image_id".
            outputs: `{"instances": Instances}` in pixels of the original image, with `pred_masks` (n, H, W)
                bool where masks are evaluated.
        """
        for one, output in zip(inputs, outputs, strict=True):
            index = self._index.get(str(one["image_id"]))
            if index is None:
                self._not_in_store += 1
                continue
            self._found[index] = _describe_detections(output["instances"], index, "segm" in self._tasks)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gathers, evaluates, writes the files; an empty dict on processes other than the main one."""
        parts = [(self._found, self._not_in_store)]
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        found: dict[int, list[dict[str, Any]]] = {}
        for part, _ in parts:
            for index, rows in part.items():
                found.setdefault(index, rows)  # padding of the last batch: the lowest rank first
        log_coverage(self.store, len(found), sum(count for _, count in parts))
        verified = verified_classes(self.store)
        rows = [row for index in sorted(found) for row in found[index]]
        counted = [row for row in rows if verified is None or verified[row["image_id"], row["category_id"]]]
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        per_class: dict[str, np.ndarray] = {}
        truth = truth_of_store(self.store, with_masks="segm" in self._tasks)
        for task in self._tasks:
            name = f"coco_{task}"
            results[name], per_class[name] = self._measure(task, truth, counted)
            table = tabulate(
                [[f"{value:.2f}" for value in results[name].values()]], headers=list(results[name])
            )
            logger.info("COCO's metric, %s, on %s:\n%s", task, self._name, table)
        if self._output_dir is not None:
            self._write(rows, results, per_class)
        return results

    def _measure(
        self, task: Task, truth: StoreTruth, rows: list[dict[str, Any]]
    ) -> tuple[dict[str, float], np.ndarray]:
        """Percentages by name, and (K,) AP of each class in [0, 1], NaN without ground truth."""
        ground = coco_ground_truth(self.store, task, truth)
        precision = coco_precision(ground, rows, task, self._max_detections)
        ap = precision[..., 0].mean(axis=(0, 1))
        summary = {
            "AP": mean_of_known(precision[..., 0]),
            "AP50": mean_of_known(precision[0, ..., 0]),
            "AP75": mean_of_known(precision[5, ..., 0]),
            "APs": mean_of_known(precision[..., 1]),
            "APm": mean_of_known(precision[..., 2]),
            "APl": mean_of_known(precision[..., 3]),
            **{f"AP_{name}": mean_of_known(ap[classes]) for name, classes in self._groups.items()},
        }
        return {name: 100 * value for name, value in summary.items()}, ap

    def _write(
        self, rows: list[dict[str, Any]], results: Mapping[str, Any], per_class: Mapping[str, np.ndarray]
    ) -> None:
        assert self._output_dir is not None
        self._output_dir.mkdir(parents=True, exist_ok=True)
        image_ids = [json_id(name.decode()) for name in self.store.image_ids.tolist()]
        class_ids = [json_id(name) for name in self.store.class_ids]
        with atomic_writer(self._output_dir / "coco_instances_results.json") as stream:
            json.dump([_for_json(row, image_ids, class_ids) for row in rows], stream)
        group_of_class = groups_of_classes(self._groups)
        classes = [
            {
                **facts,
                "group": group_of_class.get(k),
                **{task: number_or_null(ap[k]) for task, ap in per_class.items()},
            }
            for k, facts in enumerate(class_facts(self.store, self._train_counts))
        ]
        with atomic_writer(self._output_dir / "coco_metrics.json") as stream:
            summary = fractions(results)
            json.dump(
                {"unit": "fractions in [0, 1]", "summary": summary, "classes": classes}, stream, indent=1
            )
            stream.write("\n")


def coco_ground_truth(store: AnnotationStore, task: Task, truth: StoreTruth | None = None) -> dict[str, Any]:
    """The content of a COCO file about a store, an annotation for each class that an object is of.

    Args:
        store: where the objects are.
        task: "bbox" or "segm".
        truth: of the store, with masks for "segm"; None reads it.

    Returns:
        A dict whose image and category ids are positions in the store.
    """
    truth = truth or truth_of_store(store, with_masks=task == "segm")
    sizes = store.image_sizes.tolist()
    described: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    pairs = zip(truth.image.tolist(), truth.object.tolist(), truth.cls.tolist(), strict=True)
    for number, (image, row, label) in enumerate(pairs, start=1):  # a match with id 0 would be none
        if row not in described:
            described[row] = _describe_object(truth, row, sizes[image], task)
        annotations.append({"image_id": image, **described[row], "category_id": label, "id": number})
    images = [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)]
    categories = [{"id": k, "name": name} for k, name in enumerate(store.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _describe_object(truth: StoreTruth, row: int, size: Sequence[int], task: Task) -> dict[str, Any]:
    box = truth.box[row]
    one = {"bbox": box.tolist(), "area": float(truth.area[row]), "iscrowd": int(truth.group[row])}
    if task == "segm":
        runs = truth.runs[row] if truth.runs is not None else None
        if runs is None:
            one.update(segmentation=whole_box_runs(box, *size), iscrowd=1)
        else:
            one["segmentation"] = runs
    return one


def coco_precision(
    truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], task: Task, max_detections: int
) -> np.ndarray:
    """COCO's interpolated precision: (10 IoU thresholds, 101 recalls, K classes, 4 areas), NaN without truth.

    Args:
        truth: from `coco_ground_truth`.
        rows: detections in COCO's form with the same ids.
        task: "bbox" or "segm".
        max_detections: for each image and class.
    """
    num_classes = len(truth["categories"])
    if not rows:
        return _nothing_found(truth, num_classes)
    # The library prints its progress; what matters is logged by the evaluator.
    with redirect_stdout(StringIO()):
        ground = COCO(dict(truth))
        results = ground.loadRes([dict(row) for row in rows])
        evaluation = COCOeval_faster(ground, results, task, print_function=lambda *_: None)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., 0]
    return np.where(precision < 0, np.nan, precision)


def _nothing_found(truth: Mapping[str, Any], num_classes: int) -> np.ndarray:
    precision = np.full((10, 101, num_classes, 4), np.nan)
    for one in truth["annotations"]:
        if not one["iscrowd"]:
            low = one["area"] ** 0.5
            inside = (True, low <= 32, 32 <= low <= 96, low >= 96)
            precision[:, :, one["category_id"], np.flatnonzero(inside)] = 0.0
    return precision


def verified_classes(store: AnnotationStore) -> np.ndarray | None:
    """(n, K) bool, the classes that were looked for in each image; None if the store has no image labels."""
    if not len(store.image_labels):
        return None
    verified = np.zeros((len(store), store.num_classes), dtype=bool)
    images = np.arange(len(store))
    of_object = np.repeat(images, np.diff(store.object_offsets))
    rows, classes = store.hierarchy.expand(np.repeat(of_object, np.diff(store.label_offsets)), store.labels)
    verified[rows, classes] = True
    image = np.repeat(images, np.diff(store.image_label_offsets))
    present = store.image_label_status != 0
    for chosen, up in ((present, True), (~present, False)):
        rows, classes = store.hierarchy.expand(image[chosen], store.image_labels[chosen], up=up)
        verified[rows, classes] = True
    return verified


def _describe_detections(instances: Instances, image: int, with_masks: bool) -> list[dict[str, Any]]:
    """Detections of an image in COCO's form; those that are not finite are left out."""
    found = read_instances(instances, with_masks=with_masks)
    box = found.box.astype(np.float64)
    box[:, 2:] -= box[:, :2]
    columns = (found.cls.tolist(), box.tolist(), found.score.tolist())
    rows: list[dict[str, Any]] = [
        {"image_id": image, "category_id": cls, "bbox": xywh, "score": score}
        for cls, xywh, score in zip(*columns, strict=True)
    ]
    for row, runs in zip(rows, found.runs or (), strict=found.runs is not None):
        row["segmentation"] = runs
    return rows


def _for_json(
    row: Mapping[str, Any], image_ids: Sequence[int | str], class_ids: Sequence[int | str]
) -> dict[str, Any]:
    result = {
        **row,
        "image_id": image_ids[row["image_id"]],
        "category_id": class_ids[row["category_id"]],
        "bbox": [round(edge, 3) for edge in row["bbox"]],
    }
    if "segmentation" in row:
        runs = row["segmentation"]
        result["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return result
