"""The evaluators of one data set as one object, for YAML and lazy configs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluators

from longtail_det2.evaluation.coco_evaluation import COCOStoreEvaluator, Task
from longtail_det2.evaluation.lvis_evaluation import LVISStoreEvaluator
from longtail_det2.evaluation.openimages_evaluation import OpenImagesEvaluator
from longtail_det2.utils.errors import ConfigError


class StoreEvaluators(DatasetEvaluators):
    """The Open Images metric, and COCO's and LVIS's if asked for, of the same outputs on one store."""

    def __init__(
        self,
        dataset: str | Path,
        *,
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        frequency_thresholds: Sequence[float] | None = None,
        coco_tasks: Sequence[Task] = (),
        coco_max_detections: int = 100,
        lvis_tasks: Sequence[Task] = (),
        lvis_max_detections: int = 300,
        lvis_fixed_ap_detections: int = 10_000,
        open_images: bool = True,
        **open_images_options: Any,
    ) -> None:
        """Opens the store of the data set.

        Args:
            dataset: registered data set, or directory of a store.
            output_dir: folder for the result files.
            train_counts: (K,) training images of each class.
            frequency_thresholds: see `frequency_bins`.
            coco_tasks: "bbox", "segm" or both; () leaves COCO's metric out.
            coco_max_detections: see `COCOStoreEvaluator`.
            lvis_tasks: "bbox", "segm" or both; () leaves LVIS's metric out.
            lvis_max_detections: see `LVISStoreEvaluator`.
            lvis_fixed_ap_detections: see `LVISStoreEvaluator`.
            open_images: False leaves the Open Images metric out.
            **open_images_options: the other arguments of `OpenImagesEvaluator`.

        Raises:
            ConfigError: no metric is left, or see the evaluators.
            DataError: there is no usable store.
        """
        if not (open_images or coco_tasks or lvis_tasks):
            raise ConfigError(
                "no metric is left to evaluate by: set TEST.OPEN_IMAGES.ENABLED, TEST.COCO.TASKS or "
                "TEST.LVIS.TASKS (of StoreEvaluators: open_images, coco_tasks, lvis_tasks)"
            )
        common: dict[str, Any] = {"output_dir": output_dir, "train_counts": train_counts}
        evaluators: list[Any] = []
        if open_images:
            options = {"frequency_thresholds": frequency_thresholds, **open_images_options}
            evaluators.append(OpenImagesEvaluator(dataset, **common, **options))
        if coco_tasks:
            evaluators.append(
                COCOStoreEvaluator(
                    dataset,
                    tasks=coco_tasks,
                    max_detections=coco_max_detections,
                    frequency_thresholds=frequency_thresholds,
                    **common,
                )
            )
        if lvis_tasks:
            evaluators.append(
                LVISStoreEvaluator(
                    dataset,
                    tasks=lvis_tasks,
                    max_detections=lvis_max_detections,
                    fixed_ap_detections=lvis_fixed_ap_detections,
                    **common,
                )
            )
        super().__init__(evaluators)
