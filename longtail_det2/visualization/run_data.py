"""Reading what a run left in its folder, also one that was stopped, or that still writes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json

logger = logging.getLogger(__name__)

_MAIN_TASKS = ("lvis_segm", "lvis_bbox", "coco_segm", "coco_bbox")
_LVIS_GROUPS = {"f": "frequent", "c": "common", "r": "rare"}


@dataclass(frozen=True)
class Evaluation:
    """One `inference/<data set>/` folder.

    Attributes:
        folder: its name is that of the data set.
        document: its results.json, as `results_document` of the evaluator describes it.
    """

    folder: Path
    document: dict[str, Any]

    @property
    def summary(self) -> dict[str, dict[str, float | None]]:
        """Means in [0, 1] by task ("bbox" is the Open Images metric, "coco_segm", ...) and name."""
        return self.document["summary"]

    @property
    def classes(self) -> list[dict[str, Any]]:
        """An entry per class in class-index order."""
        return self.document["classes"]

    @property
    def ap_key(self) -> str:
        """Whose AP of single classes is shown: "AP" of the Open Images metric, else a task of another."""
        tasks = () if "bbox" in self.summary else _MAIN_TASKS
        return next((task for task in tasks if task in self.summary), "AP")

    @property
    def predictions(self) -> Path | None:
        """The predictions, those with masks if there are any."""
        masks = any(task.startswith(("coco_segm", "lvis_segm")) for task in self.summary)
        names = ("coco_instances_results.json", "predictions.csv")[:: 1 if masks else -1]
        return next((path for name in names if (path := self.folder / name).is_file()), None)

    def group_of(self, one: Mapping[str, Any]) -> str:
        """Return the group of a class: "inner", by frequency "head", ... or "rare", ..., else "leaf"."""
        if not one.get("is_leaf", True):
            return "inner"
        if self.ap_key.startswith("lvis_"):
            return _LVIS_GROUPS.get(one.get("frequency") or "", "leaf")
        return one.get("frequency_bin") or "leaf"

    def members(self, mean: str) -> list[dict[str, Any]]:
        """Return the classes behind a mean of the Open Images metric, such as "mAP50_leaves"."""
        kind = mean.partition("_")[2]
        if kind in ("", "expanded"):
            return self.classes
        return [one for one in self.classes if one["is_leaf"] and kind in ("leaves", one["frequency_bin"])]


def read_evaluation(run: Path, dataset: str | None = None) -> Evaluation | None:
    """Read an evaluation of a run, without `dataset` the first one; None where there is none to be read."""
    for path in sorted(run.glob(f"inference/{dataset or '*'}/results.json"))[:1]:
        try:
            document = read_json(path)
            if all(isinstance(one, dict) for one in (*document["summary"].values(), *document["classes"])):
                return Evaluation(path.parent, document)
            reason: object = "not what an evaluation writes"
        except (DataError, KeyError, TypeError, AttributeError) as error:
            reason = error
        logger.warning("%s cannot be read (%s): the report goes without it", path, reason)
    return None


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Read metrics.json.

    Returns:
        (T,) float64 by logged name: "iteration", ascending, "total_loss", "loss_cls", "lr", "time", ...;
        NaN where not logged; {} without a training.
    """
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:  # a run that was killed, or still writes, leaves half a line
            logger.warning("%s:%d: not JSON, left out", path, number)
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int) and "total_loss" in row:
            # A resumed run repeats iterations: what it writes replaces what came after its checkpoint.
            while rows and rows[-1]["iteration"] >= row["iteration"]:
                rows.pop()
            rows.append(row)
    names = sorted({name for row in rows for name, value in row.items() if isinstance(value, (int, float))})
    return {name: np.array([row.get(name, math.nan) for row in rows], dtype=np.float64) for name in names}
