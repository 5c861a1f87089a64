"""Reading what a training run and its evaluation left on disk, whole or in part.

The report must work for a run that was stopped, for an evaluation without training, and while a run is still
writing: whatever is missing is None or empty here, never an error. Of a file that is there but cannot be
understood a warning tells.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.model_zoo.run_facts import read_plain_yaml
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_RESULTS = "results.json"
_MAIN_TASKS = ("lvis_segm", "lvis_bbox", "coco_segm", "coco_bbox")
_LVIS_GROUPS = {"f": "frequent", "c": "common", "r": "rare"}

__all__ = ["ClassResult", "Evaluation", "RunData", "TrainingLog", "find_evaluations", "read_run"]


@dataclass(frozen=True)
class ClassResult:
    """What the evaluation says about one class.

    Attributes:
        id, name: identifier and display name.
        ap: average precision in [0, 1]; NaN without ground truth.
        ap_expanded: the same with predictions repeated for their ancestors; NaN if not computed.
        num_gt: ground-truth boxes after expansion (group-of boxes by their weight).
        train_images: training images with the class; None if unknown.
        is_leaf: no class is below it in the hierarchy.
        group: "head", "medium", "tail"; of LVIS's metric alone "frequent", "common", "rare"; or None (inner
            classes, or training counts unknown).
        coco: COCO's and LVIS's AP in [0, 1] by what was evaluated ("coco_bbox", "lvis_segm", ...); NaN
            without ground truth; empty if neither metric was computed.
    """

    id: str
    name: str
    ap: float
    ap_expanded: float
    num_gt: float
    train_images: int | None
    is_leaf: bool
    group: str | None
    coco: Mapping[str, float] = field(default_factory=dict)

    def ap_of(self, task: str) -> float:
        """AP in [0, 1] by what was evaluated, see :attr:`Evaluation.main_task`; NaN where there is none."""
        return self.coco.get(task, math.nan) if task else self.ap


@dataclass(frozen=True)
class Evaluation:
    """One `inference/<data set>/` folder.

    Attributes:
        dataset: name of the folder, which is the name of the data set.
        metric: name of the metric.
        summary: means of the Open Images metric in [0, 1] by name; NaN where there is none; empty if it was
            not computed.
        classes: one entry per class in class-index order.
        options: options of the metric (`iou_threshold`, `group_of_weight`, ...).
        num_images: images that the metric read; None if unknown.
        predictions: detections in COCO's form if they have masks, else predictions.csv, else detections in
            COCO's form, or None.
        coco: means of COCO's metric in [0, 1] by what was evaluated ("coco_bbox", "coco_segm") and by name
            ("AP", "AP50", ...); empty if it was not computed.
        lvis: the same of LVIS's metric ("lvis_bbox", "lvis_bbox_fixed", ...).
    """

    dataset: str
    metric: str
    summary: dict[str, float]
    classes: tuple[ClassResult, ...]
    options: dict[str, Any]
    num_images: int | None
    predictions: Path | None
    coco: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lvis: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def main_task(self) -> str:
        """Whose AP figures show: "" for the Open Images metric, else a key of `lvis` or `coco`."""
        if self.summary:
            return ""
        return next((task for task in _MAIN_TASKS if task in self.lvis or task in self.coco), "")


@dataclass(frozen=True)
class TrainingLog:
    """Training curves.

    Attributes:
        iteration: (T,) int64, ascending.
        values: (T,) float64 per logged name ("total_loss", "loss_cls", "lr", ...); NaN where not logged.
    """

    iteration: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def losses(self) -> list[str]:
        """Names of the losses, the total first."""
        parts = sorted(name for name in self.values if name.startswith("loss"))
        return [name for name in ("total_loss",) if name in self.values] + parts

    @property
    def seconds(self) -> float | None:
        """Time spent in training steps, from the logged seconds an iteration; None if not logged."""
        if "time" not in self.values or not len(self.iteration):
            return None
        steps = np.diff(self.iteration, prepend=-1)
        known = ~np.isnan(self.values["time"])
        if not known.any():
            return None
        return float(np.median(self.values["time"][known]) * steps[~known].sum()) + float(
            (self.values["time"][known] * steps[known]).sum()
        )


@dataclass(frozen=True)
class RunData:
    """What was found in the output folder of a run.

    Attributes:
        path: the folder.
        log: training curves, or None.
        evaluation: the chosen evaluation, or None.
        config: the run's config as nested mappings; empty if there is none that can be read.
        problems: sentences about what is missing or unreadable.
    """

    path: Path
    log: TrainingLog | None = None
    evaluation: Evaluation | None = None
    config: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def setting(self, key: str, default: Any = None) -> Any:
        """Value of a dotted config key, for example "SOLVER.BASE_LR"."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node


def read_run(path: str | Path, dataset: str | None = None) -> RunData:
    """Reads the output folder of a run.

    Args:
        path: folder with metrics.json, config.yaml and inference/<data set>/; any of them may be missing.
        dataset: evaluation to read; None takes the only or first one.
    """
    path = Path(path)
    problems: list[str] = []
    log = _read_log(path / "metrics.json")
    if log is None:
        problems.append(
            "There is no training log (metrics.json): the run was evaluated only, or has not started."
        )
    folders = find_evaluations(path)
    names = [folder.name for folder in folders]
    chosen = dataset if dataset is not None else (names[0] if names else None)
    evaluation = _read_evaluation(folders[names.index(chosen)]) if chosen in names else None
    if evaluation is None:
        what = f"of {dataset} " if dataset else ""
        problems.append(f"There is no finished evaluation {what}(inference/<data set>/results.json).")
    elif evaluation.predictions is None:
        problems.append("There are no predictions (predictions.csv): pictures show the truth alone.")
    return RunData(path, log, evaluation, _read_config(path / "config.yaml"), tuple(problems))


def find_evaluations(run: Path) -> list[Path]:
    """Folders below inference/ that hold the results of a data set, by name."""
    single = run / "inference"
    return (
        sorted(path.parent for path in single.glob(f"*/{_RESULTS}"))
        or [single] * (single / _RESULTS).is_file()
    )


def _read_log(path: Path) -> TrainingLog | None:
    rows: list[dict[str, Any]] = []
    for row in _json_lines(path):
        if not isinstance(row.get("iteration"), int) or "total_loss" not in row:
            continue
        # A resumed run repeats iterations: what it writes replaces what came after its checkpoint.
        while rows and rows[-1]["iteration"] >= row["iteration"]:
            rows.pop()
        rows.append(row)
    if not rows:
        return None
    names = sorted({name for row in rows for name in row if name != "iteration"})
    values = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    return TrainingLog(np.array([row["iteration"] for row in rows], dtype=np.int64), values)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; lines that are no object (a last one half written) are passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                logger.warning("%s:%d: not JSON, passed over", path, number)
            continue
        if isinstance(row, dict):
            yield row


def _read_evaluation(folder: Path) -> Evaluation | None:
    path = folder / _RESULTS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        means = {
            str(task): {str(name): _number(value) for name, value in values.items()}
            for task, values in document["summary"].items()
        }
        summary = means.pop("bbox", {})
        by_lvis = not summary and all(task.startswith("lvis_") for task in means)
        classes = tuple(
            _class_result(row, {task: _number(row.get(task)) for task in means}, by_lvis)
            for row in document.get("classes", ())
        )
        official = document.get("metrics", {}).get("open_images", {})
        has_masks = any(task.startswith(("coco_segm", "lvis_segm")) for task in means)
        names = ("coco_instances_results.json", "predictions.csv")[:: 1 if has_masks else -1]
        return Evaluation(
            dataset=folder.name,
            metric=str(official.get("metric", "")),
            summary=summary,
            classes=classes,
            options=dict(official.get("options", {})),
            num_images=official.get("num_images", document.get("num_images")),
            predictions=next((folder / name for name in names if (folder / name).is_file()), None),
            coco={task: values for task, values in means.items() if task.startswith("coco_")},
            lvis={task: values for task, values in means.items() if task.startswith("lvis_")},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            "%s cannot be read (%s: %s): the report goes without it", path, type(error).__name__, error
        )
        return None


def _class_result(row: Mapping[str, Any], coco: Mapping[str, float], by_lvis: bool) -> ClassResult:
    count = row.get("train_images")
    return ClassResult(
        id=str(row["id"]),
        name=str(row.get("name", row["id"])),
        ap=_number(row.get("AP")),
        ap_expanded=_number(row.get("AP_expanded")),
        num_gt=_number(row.get("num_gt")),
        train_images=None if count is None else int(count),
        is_leaf=bool(row.get("is_leaf", True)),
        group=_LVIS_GROUPS.get(row.get("frequency") or "") if by_lvis else row.get("frequency_bin"),
        coco=coco,
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_plain_yaml(path)
    except ConfigError as error:
        logger.warning("%s: the report goes without it", error)
        return {}


def _number(value: Any) -> float:
    if value is None or isinstance(value, (bool, str)):
        return math.nan
    try:
        return float(value)
    except TypeError:
        return math.nan
