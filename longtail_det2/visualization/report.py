"""The report of a run: one HTML file that opens from disk, made of report.html.j2 and what the run left."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import longtail_det2
from longtail_det2.config import HEAD_NODES
from longtail_det2.data.store import AnnotationStore
from longtail_det2.engine.run_record import read_run_record
from longtail_det2.evaluation.evaluator import open_store
from longtail_det2.evaluation.image_label_metric import SCORES_FILE
from longtail_det2.model_zoo.run_facts import config_without_paths, read_plain_yaml, value_at
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import atomic_writer, read_json
from longtail_det2.utils.wording import pluralize

from .plots import COLOR_OF, ap_plot, long_tail_plot, training_plots
from .report_images import draw_images

logger = logging.getLogger(__name__)

_CARDS = {
    "AP": {"": "all", "_leaves": "leaf", "_head": "head", "_medium": "medium", "_tail": "tail"},
    "lvis": {"AP": "all", "APf": "frequent", "APc": "common", "APr": "rare"},
    "coco": {"AP": "all", "AP50": "all", "AP_head": "head", "AP_medium": "medium", "AP_tail": "tail"},
    "image": {
        "mAP": "all",
        "mAP_head": "head",
        "mAP_medium": "medium",
        "mAP_tail": "tail",
        "micro_F1": "all",
    },
}
"""Means to show first, with the classes that they are over, by metric."""
_MAIN_TASKS = ("lvis_segm", "lvis_bbox", "coco_segm", "coco_bbox", "image_labels")
_LVIS_GROUPS = {"f": "frequent", "c": "common", "r": "rare"}


@dataclass(frozen=True)
class Evaluation:
    """One `inference/<data set>/` folder; see `results_document` of the evaluator.

    Attributes:
        folder: its name is that of the data set.
        document: its results.json.
        summary: means in [0, 1] by task ("bbox" is the Open Images metric, "coco_segm", ...) and name.
        classes: an entry per class in class-index order.
    """

    folder: Path
    document: dict[str, Any]
    summary: dict[str, dict[str, float | None]]
    classes: list[dict[str, Any]]

    @property
    def ap_key(self) -> str:
        """Whose AP of single classes is shown: "AP" of the Open Images metric, else a task of another."""
        tasks = () if "bbox" in self.summary else _MAIN_TASKS
        return next((task for task in tasks if task in self.summary), "AP")

    @property
    def predictions(self) -> Path | None:
        """The predictions, those with masks if there are any, or the scores of images."""
        masks = any(task.startswith(("coco_segm", "lvis_segm")) for task in self.summary)
        names = ("coco_instances_results.json", "predictions.csv")[:: 1 if masks else -1]
        names = (SCORES_FILE,) if self.ap_key == "image_labels" else names
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


def build_report(
    run: str | Path,
    output: str | Path,
    *,
    train_store: str | Path | AnnotationStore | None = None,
    val_store: str | Path | AnnotationStore | None = None,
    dataset: str | None = None,
    title: str = "",
    images: int = 12,
    score_threshold: float | None = None,
    steps: Sequence[tuple[str, float]] = (),
) -> Path:
    """Write the report of a run.

    Parts whose input is missing (no training log, no evaluation, no predictions, no store) are left out, and
    the report says so.

    Args:
        run: output folder of the run: run.json, config.yaml, metrics.json, inference/<data set>/.
        output: HTML file to write; its folder is made if absent.
        train_store: training annotations, for their sizes.
        val_store: validation annotations, for the images.
        dataset: which evaluation below inference/; None takes the only or first one.
        title: heading; empty for one made of the data set's name.
        images: most validation images.
        score_threshold: least score of drawn predictions in [0, 1]; None chooses one.
        steps: pairs (what was done, seconds), shown as they come.

    Returns:
        `output`.

    Raises:
        DataError: there is no folder `run`, a store is unusable, or the predictions do not fit `val_store`.
    """
    run, output = Path(run), Path(output)
    if not run.is_dir():
        raise DataError(f"{run}: there is no such folder; give the OUTPUT_DIR of a run")
    train, validation = (None if one is None else open_store(one) for one in (train_store, val_store))
    log, config, evaluation = read_log(run / "metrics.json"), _read_config(run), read_evaluation(run, dataset)
    facts = {"Training data": _describe(train), "Validation data": _describe(validation)}
    facts.update(_facts(read_run_record(run), config))
    if "time" in log:
        seconds = float(np.nansum(np.diff(log["iteration"], prepend=-1) * log["time"]))
        facts["Time in training steps"] = duration(seconds)
    if steps:
        steps = [*steps, ("together", sum(seconds for _, seconds in steps))]
        facts["Steps"] = ", ".join(f"{name} {duration(seconds)}" for name, seconds in steps)
    notes = [] if log else ["There is no training log (metrics.json)."]
    if evaluation is None:
        notes.append(f"There is no finished evaluation (inference/{dataset or '<data set>'}/results.json).")
    elif evaluation.predictions is None:
        notes.append("There are no predictions (predictions.csv): images show the truth alone.")
    content: dict[str, Any] = {
        "title": title or (f"Results on {evaluation.folder.name}" if evaluation else "Training run"),
        "notes": notes,
        "version": longtail_det2.__version__,
        "iterations": int(log["iteration"][-1]) + 1 if log else 0,
        "facts": {name: value for name, value in facts.items() if value not in ("", None)},
        "config": config_without_paths(config) if config else "",
        "training": training_plots(log),
        "evaluation": evaluation,
        "colors": COLOR_OF,
    }
    if evaluation is not None:
        content.update(_results(evaluation))
    if validation is not None:
        rare: set[int] = set()
        if evaluation is not None and [one["id"] for one in evaluation.classes] == list(validation.class_ids):
            groups = map(evaluation.group_of, evaluation.classes)
            rare = {place for place, group in enumerate(groups) if group in ("tail", "rare")}
        path = None if evaluation is None else evaluation.predictions
        content.update(draw_images(validation, path, rare, images, score_threshold))
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["commas"] = lambda value: "–" if value is None else f"{value:,.10g}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(output) as stream:
        stream.write(environment.get_template("report.html.j2").render(content))
    logger.info("report: %s (%.1f MB)", output, output.stat().st_size / 1e6)
    return output


def read_evaluation(run: Path, dataset: str | None = None) -> Evaluation | None:
    """Read an evaluation of a run, without `dataset` the first one; None where there is none to be read."""
    for path in sorted(run.glob(f"inference/{dataset or '*'}/results.json"))[:1]:
        try:
            document = read_json(path)
            if all(isinstance(one, dict) for one in (*document["summary"].values(), *document["classes"])):
                return Evaluation(path.parent, document, document["summary"], document["classes"])
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


def duration(seconds: float) -> str:
    """Seconds as "1.2 s", "12 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _read_config(run: Path) -> dict[str, Any]:
    try:
        return read_plain_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    except ConfigError as error:
        logger.warning("%s: the report goes without it", error)
        return {}


def _describe(store: AnnotationStore | None) -> str:
    if store is None:
        return ""
    leaves, inner = len(store.hierarchy.leaves), len(store.hierarchy.inner)
    labels = f"{store.num_objects:,} objects with {len(store.labels):,} labels"
    if not store.num_objects:
        labels = f"{len(store.present_labels[1]):,} labels of whole images"
    classes = f"{store.num_classes:,} classes ({leaves:,} leaves, {inner:,} inner)"
    return f"{len(store):,} images, {labels} of {classes}"


def _facts(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json and config.yaml say: no defaults that were not used, no host name, no folders."""
    words = [str(word) for word in record.get("options", ())]
    if not all("=" in word for word in words):  # KEY VALUE ..., not key=value ...
        words = [" ".join(words[k : k + 2]) for k in range(0, len(words), 2)]
    own = HEAD_NODES.get(str(value_at(config, "MODEL.META_ARCHITECTURE")), "DENSE_HEAD")
    heads = {"META_ARCHITECTURE": own, "ROI_HEADS.NAME": "ROI_BOX_HEAD"}
    losses = (
        value_at(config, f"MODEL.{head}.CLASSIFICATION_LOSS")
        for key, head in heads.items()
        if str(value_at(config, f"MODEL.{key}")).startswith("MultiLabel")
    )
    machine, versions = record.get("machine"), record.get("versions", {})
    return {
        "Config": record.get("config"),
        "Options": " ".join(one for one in words if "/" not in one or "://" in one),
        "Model": value_at(config, "MODEL.META_ARCHITECTURE"),
        "Backbone": value_at(config, "MODEL.BACKBONE.NAME"),
        "Images per iteration": value_at(config, "SOLVER.IMS_PER_BATCH"),
        "Learning rate": value_at(config, "SOLVER.BASE_LR"),
        "Sampler": value_at(config, "DATALOADER.SAMPLER_TRAIN"),
        "Classification loss": next(losses, None),
        "Seed": record.get("seed"),
        "Started": record.get("started"),
        "Software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Commit": record.get("commit"),
        "Machine": machine
        and f"{machine.get('cpus')} CPU cores, {', '.join(machine.get('gpus', ())) or 'no GPU'}, "
        f"{pluralize(record.get('processes', 1), 'process', 'processes')}",
    }


def _results(evaluation: Evaluation) -> dict[str, Any]:
    """Collect means, plots and the table of classes of an evaluation."""
    metrics = evaluation.document.get("metrics", {})
    options = {name: one.get("options", {}) for name, one in metrics.items()}
    iou = options.get("open_images", {}).get("iou_threshold", 0.5)
    key, summary = evaluation.ap_key, evaluation.summary
    means = summary.get("bbox" if key == "AP" else key, {})
    prefix = f"mAP{100 * iou:g}" if key == "AP" else ""
    cards = [(prefix + name, group) for name, group in _CARDS[key.partition("_")[0]].items()]
    rows = [(evaluation.group_of(one), one["train_images"], one.get(key)) for one in evaluation.classes]
    points = [(group, count, ap) for group, count, ap in rows if count is not None and ap is not None]
    leaves = [(group, count) for group, count, _ in rows if group != "inner" and count is not None]
    keys = {name for one in evaluation.classes for name in one}
    columns = [key, *(name for name in ("AP_expanded", *summary) if name != key and name in keys)]
    tables: dict[str, dict[str, Any]] = {"COCO": {}, "LVIS": {}, "Image-label": {}}
    for task in summary:
        if (metric := task.partition("_")[0].upper()) in tables:
            tables[metric][_name(task, iou).partition(", ")[2]] = summary[task]
    for name, value in summary.get("image_labels", {}).items():
        mean, group = _mean_and_group(name)
        tables["Image-label"].setdefault(mean, {})[group] = value
    return {
        "options": options,
        "metric": metrics.get("open_images", {}).get("metric", ""),
        "cards": [
            (_mean_and_group(name)[0], group, means[name])
            for name, group in cards
            if means.get(name) is not None
        ],
        "tables": {metric: tasks for metric, tasks in tables.items() if tasks},
        "ap_plot": ap_plot(points, f"{_name(key, iou)}, %") if points else "",
        "long_tail_plot": long_tail_plot(*zip(*leaves, strict=True)) if leaves else "",
        "ap_columns": {name: _name(name, iou) for name in columns},
        "classes": sorted(
            evaluation.classes,
            key=lambda one: (not one["is_leaf"], -(one["train_images"] or 0), one["name"]),
        ),
    }


def _mean_and_group(name: str) -> tuple[str, str]:
    """Split "mAP50_tail" or "micro_F1_tail" into "mAP50" or "micro F1", and the group; "" is "all"."""
    mean, _, group = name.replace("_F1", " F1").partition("_")
    return mean, group or "all"


def _name(task: str, iou: float) -> str:
    """Return what the AP of a task is in words."""
    if task == "image_labels":
        return "AP of image labels"
    metric, _, rest = task.partition("_")
    if metric == "AP":
        return "AP expanded" if rest else f"AP at IoU {iou:g}"
    words = rest.replace("bbox", "boxes").replace("segm", "masks").replace("_fixed", ", fixed AP")
    return f"{metric.upper()}'s AP, {words}"
