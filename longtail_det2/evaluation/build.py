"""The evaluators of one data set as one object, for YAML and lazy configs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluators

from longtail_det2.evaluation.coco_evaluation import COCOStoreEvaluator, Task
from longtail_det2.evaluation.openimages_evaluation import OpenImagesEvaluator


class StoreEvaluators(DatasetEvaluators):
    """The Open Images metric and, if asked for, COCO's, of the same outputs on one annotation store."""

    def __init__(
        self,
        dataset: str | Path,
        *,
        output_dir: str | Path | None = None,
        train_counts: np.ndarray | Sequence[int] | None = None,
        frequency_thresholds: Sequence[float] | None = None,
        coco_tasks: Sequence[Task] = (),
        coco_max_detections: int = 100,
        **open_images: Any,
    ) -> None:
        """Opens the store of the data set.

        Args:
            dataset: registered data set, or directory of a store.
            output_dir: folder for the result files.
            train_counts: (K,) training images of each class.
            frequency_thresholds: see `split_by_frequency`.
            coco_tasks: "bbox", "segm" or both; () leaves COCO's metric out.
            coco_max_detections: see `COCOStoreEvaluator`.
            **open_images: the other arguments of `OpenImagesEvaluator`.

        Raises:
            ConfigError: see the evaluators.
            DataError: there is no usable store.
        """
        common: dict[str, Any] = {
            "output_dir": output_dir,
            "train_counts": train_counts,
            "frequency_thresholds": frequency_thresholds,
        }
        evaluators: list[Any] = [OpenImagesEvaluator(dataset, **common, **open_images)]
        if coco_tasks:
            limit = coco_max_detections
            evaluators.append(COCOStoreEvaluator(dataset, tasks=coco_tasks, max_detections=limit, **common))
        super().__init__(evaluators)
