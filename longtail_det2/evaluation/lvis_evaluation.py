"""LVIS's average precision and fixed AP of a model's outputs, with the truth of an annotation store."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.lvis_metric import (
    AREAS,
    LvisDetections,
    LvisResult,
    Task,
    best_of_classes,
    best_of_images,
    evaluate_lvis,
)
from longtail_det2.evaluation.lvis_results import write_instances, write_metrics
from longtail_det2.evaluation.lvis_spill import (
    DetectionSpill,
    SpilledDetections,
    SpilledPart,
    remove_parts,
)
from longtail_det2.evaluation.lvis_truth import class_frequencies, image_order, lvis_truth
from longtail_det2.evaluation.model_outputs import log_coverage, mean_of_known, read_instances
from longtail_det2.evaluation.openimages_evaluation import name_of_dataset, open_store
from longtail_det2.evaluation.store_truth import check_tasks
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)


class LVISStoreEvaluator(DatasetEvaluator):
    """LVIS's metric on a model's boxes and masks, by the rules of `longtail_det2.evaluation.lvis_metric`.

    An object is ground truth for each of its labels and their ancestors. Where a class is known not to be
    annotated exhaustively, its ancestors are not either; a class verified absent has its descendants absent.
    As in COCO's metric, detections in a box around a group count neither way, nor do those in the box of an
    object without a mask when masks are evaluated (LVIS has neither).

    Detections are kept on disk, in a hidden folder in `output_dir` that the end of the evaluation removes.
    With processes on several machines it has to be a folder that all of them see.

    `evaluate` returns percentages under "lvis_bbox" and "lvis_segm": AP, AP50, AP75, APs, APm, APl (by area
    in pixels of the image), APr, APc, APf (rare, common and frequent classes); and fixed AP under
    "lvis_bbox_fixed" and "lvis_segm_fixed": AP, APr, APc, APf. A mean over no class is NaN. In `output_dir`
    it writes lvis_instances_results.json (LVIS's form, with the ids of the data set) and lvis_metrics.json
    (fractions, with each class's AP and frequency).
    """

    def __init__(
        self,
        dataset: str | Path | AnnotationStore,
        *,
        tasks: Sequence[Task] = ("bbox",),
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        max_detections: int = 300,
        fixed_ap_detections: int = 10_000,
        distributed: bool = True,
    ) -> None:
        """Opens the store.

        Args:
            dataset: registered data set, directory of a store, or a store.
            tasks: "bbox", "segm" or both.
            output_dir: folder for the result files, made if absent; None writes none.
            train_counts: (K,) training images of each class; groups the classes of a store that does not
                know their frequencies.
            max_detections: the best so many detections of an image over all classes count.
            fixed_ap_detections: for fixed AP, the best so many detections of a class over all images count;
                0 leaves fixed AP out.
            distributed: gather from all processes.

        Raises:
            ConfigError: an unknown task, masks of a store that has none, numbers of detections that are
                none, or training counts of other classes.
            DataError: there is no usable store.
        """
        self.store, self._name = open_store(dataset), name_of_dataset(dataset)
        check_tasks(tasks, self.store, "LVIS")
        if max_detections < 1 or fixed_ap_detections < 0:
            raise ConfigError(
                f"TEST.LVIS.MAX_DETECTIONS {max_detections} must be at least 1, and "
                f"TEST.LVIS.FIXED_AP_DETECTIONS {fixed_ap_detections} at least 0 (0: no fixed AP)"
            )
        self._tasks = tuple(tasks)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._max_detections = max_detections
        self._fixed_ap_detections = fixed_ap_detections
        self._distributed = distributed
        self._train_counts = None if train_counts is None else np.asarray(train_counts)
        self._frequencies = class_frequencies(self.store, self._train_counts)
        names = [name.decode() for name in self.store.image_ids.tolist()]
        self._order = image_order(names)
        self._image_ids = [names[place] for place in self._order.tolist()]
        self._index = {name: rank for rank, name in enumerate(self._image_ids)}
        self._spill: DetectionSpill | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets all outputs."""
        if self._spill is not None:
            self._spill.discard()
        self._spill = DetectionSpill(self._output_dir, comm.get_rank(), with_masks="segm" in self._tasks)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Writes 28 bytes a detection, and its mask's run lengths, to disk.

        Args:
            inputs: dataset dicts with "image_id".
            outputs: `{"instances": Instances}` in pixels of the original image, with `pred_masks` (n, H, W)
                bool where masks are evaluated.

        Raises:
            ConfigError: the model gives no masks, or knows classes that the store does not.
            DataError: the disk is full.
        """
        assert self._spill is not None
        for one, output in zip(inputs, outputs, strict=True):
            index = self._index.get(str(one["image_id"]))
            if index is None:
                self._spill.not_in_store += 1
                continue
            found = read_instances(output["instances"], with_masks="segm" in self._tasks)
            if len(found.cls) and found.cls.max() >= self.store.num_classes:
                raise ConfigError(
                    f"the model found an object of class {found.cls.max()}, but {self.store.path} has "
                    f"{self.store.num_classes} classes: training and evaluation need the same classes"
                )
            self._spill.add(index, found)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gathers, evaluates, writes the files; an empty dict on processes other than the main one.

        Raises:
            DataError: the detections of a process are not there.
        """
        assert self._spill is not None
        parts = [self._spill.finish()]
        self._spill = DetectionSpill(self._output_dir, comm.get_rank(), with_masks="segm" in self._tasks)
        if self._distributed and comm.get_world_size() > 1:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        try:
            return self._evaluate(parts)
        finally:
            remove_parts(parts)

    def _evaluate(self, parts: Sequence[SpilledPart]) -> OrderedDict[str, dict[str, float]]:
        found = SpilledDetections(parts)
        log_coverage(
            self.store,
            len(found.seen),
            sum(part.not_in_store for part in parts),
            sum(part.not_finite for part in parts),
        )
        truth = lvis_truth(self.store, self._order, with_masks="segm" in self._tasks)
        detections = LvisDetections(
            found.image, found.cls, found.score, found.box, found.masks if found.has_masks else None
        )
        chosen = {"": best_of_images(detections, self._max_detections)}
        if self._fixed_ap_detections:
            chosen["_fixed"] = best_of_classes(detections, self.store.num_classes, self._fixed_ap_detections)
            self._warn_of_few(found)
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        per_class: dict[str, np.ndarray] = {}
        for task in self._tasks:
            measured = evaluate_lvis(truth, detections, list(chosen.values()), task)
            for kind, one in zip(chosen, measured, strict=True):
                name = f"lvis_{task}{kind}"
                results[name] = summarize(one, self._frequencies, fixed=bool(kind))
                per_class[name] = one.ap[:, 0]
                self._log(name, results[name])
        if self._output_dir is not None:
            self._write(found, results, per_class, truth.num_objects())
        return results

    def _warn_of_few(self, found: SpilledDetections) -> None:
        """As the authors' tool: fixed AP is too low where the detector gave fewer detections than count."""
        few = int(
            (np.bincount(found.cls, minlength=self.store.num_classes) < self._fixed_ap_detections).sum()
        )
        counts = np.diff(found.offsets)
        most = int(counts.max(initial=0))
        full = int((counts == most).sum())
        if few and most and full > 1:
            logger.warning(
                "fixed AP: %d of %d classes have fewer than %d detections. The most in an image are %d, in "
                "%d of %d images: if that is a limit of the detector (TEST.DETECTIONS_PER_IMAGE), more and "
                "a lower score threshold can raise fixed AP",
                few,
                self.store.num_classes,
                self._fixed_ap_detections,
                most,
                full,
                len(counts),
            )

    def _log(self, name: str, values: Mapping[str, float]) -> None:
        table = tabulate([[f"{value:.2f}" for value in values.values()]], headers=list(values))
        logger.info("LVIS's metric, %s, on %s:\n%s", name.removeprefix("lvis_"), self._name, table)

    def _write(
        self,
        found: SpilledDetections,
        results: Mapping[str, Mapping[str, float]],
        per_class: Mapping[str, np.ndarray],
        num_gt: np.ndarray,
    ) -> None:
        assert self._output_dir is not None
        self._output_dir.mkdir(parents=True, exist_ok=True)
        write_instances(
            self._output_dir / "lvis_instances_results.json", found, self._image_ids, self.store.class_ids
        )
        write_metrics(
            self._output_dir / "lvis_metrics.json",
            self.store,
            results,
            per_class,
            num_gt=num_gt,
            frequencies=self._frequencies,
            train_counts=self._train_counts,
            options={
                "max_detections": self._max_detections,
                "fixed_ap_detections": self._fixed_ap_detections,
            },
        )


def summarize(result: LvisResult, frequencies: Sequence[str] | None, *, fixed: bool) -> dict[str, float]:
    """Percentages by LVIS's names; NaN over no class.

    Args:
        result: of all classes.
        frequencies: "r", "c" or "f" of each class; None gives NaN.
        fixed: fixed AP, which has no AP50, AP75 and none by area.
    """
    values = {"AP": result.ap[:, 0]}
    if not fixed:
        values |= {"AP50": result.ap50, "AP75": result.ap75}
        values |= {f"AP{name[0]}": result.ap[:, place] for place, name in enumerate(AREAS) if place}
    groups = np.array(list(frequencies or [""] * len(result.ap)), dtype="U1")
    values |= {f"AP{group}": result.ap[groups == group, 0] for group in "rcf"}
    return {name: 100 * mean_of_known(value) for name, value in values.items()}
