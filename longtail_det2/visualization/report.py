"""The report of a run: one HTML file that opens from disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer
from longtail_det2.visualization import report_sections as sections
from longtail_det2.visualization.report_html import page
from longtail_det2.visualization.run_data import Evaluation, read_run

logger = logging.getLogger(__name__)

__all__ = ["ReportOptions", "build_report"]


@dataclass(frozen=True)
class ReportOptions:
    """What a report contains beside what the run left.

    Attributes:
        title: heading; empty for one made of the data set's name.
        pictures: most validation pictures.
        score_threshold: least score of drawn predictions in [0, 1]; None chooses one.
        steps: pairs (what was done, seconds), shown as they come.
    """

    title: str = ""
    pictures: int = 12
    score_threshold: float | None = None
    steps: Sequence[tuple[str, float]] = ()


def build_report(
    run: str | Path,
    output: str | Path,
    *,
    train_store: str | Path | AnnotationStore | None = None,
    val_store: str | Path | AnnotationStore | None = None,
    dataset: str | None = None,
    options: ReportOptions | None = None,
) -> Path:
    """Writes the report of a run.

    Parts whose input is missing (no training log, no evaluation, no predictions, no store) are left out, and
    the report says so.

    Args:
        run: output folder of the run: metrics.json, config.yaml, inference/<data set>/.
        output: HTML file to write; its folder is made if absent.
        train_store: training annotations, for sizes and training counts.
        val_store: validation annotations, for the pictures.
        dataset: which evaluation below inference/; None takes the only or first one.
        options: further content.

    Returns:
        `output`.

    Raises:
        DataError: there is no folder `run`, a store is unusable, or the predictions do not fit `val_store`.
    """
    run, output, options = Path(run), Path(output), options or ReportOptions()
    if not run.is_dir():
        raise DataError(f"{run}: there is no such folder; give the OUTPUT_DIR of a run")
    data = read_run(run, dataset)
    train, validation = _open(train_store), _open(val_store)
    evaluation = _with_training_counts(data.evaluation, train)
    title = options.title or (f"Results on {evaluation.dataset}" if evaluation else "Training run")
    parts = [sections.header(title, data.log, evaluation)]
    parts += [f'<p class="note">{escape(problem)}</p>' for problem in data.problems]
    if evaluation is not None:
        parts += [sections.cards(evaluation), sections.results(evaluation)]
        parts += [sections.coco_results(evaluation), sections.lvis_results(evaluation)]
    parts.append(sections.run_facts(data, train, validation, options.steps))
    if evaluation is not None:
        parts += [sections.ap_by_frequency(evaluation), sections.long_tail(evaluation)]
    parts.append(sections.training(data.log))
    if validation is not None:
        parts.append(sections.pictures(validation, evaluation, options.pictures, options.score_threshold))
    if evaluation is not None:
        parts.append(sections.per_class(evaluation))
    parts.append(sections.footer())
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(output) as stream:
        stream.write(page(title, [part for part in parts if part]))
    logger.info("report: %s (%.1f MB)", output, os.path.getsize(output) / 1e6)
    return output


def _open(store: str | Path | AnnotationStore | None) -> AnnotationStore | None:
    return store if store is None or isinstance(store, AnnotationStore) else AnnotationStore.open(store)


def _with_training_counts(evaluation: Evaluation | None, train: AnnotationStore | None) -> Evaluation | None:
    """Counts inner classes in the images that show one of their subclasses too, as training truth does."""
    if evaluation is None or train is None:
        return evaluation
    if [one.id for one in evaluation.classes] != list(train.class_ids):
        logger.warning("%s has other classes than the evaluation: its counts are not used", train.path)
        return evaluation
    counts = train.image_counts(expanded=True).tolist()
    classes = zip(evaluation.classes, counts, strict=True)
    return replace(evaluation, classes=tuple(replace(one, train_images=n) for one, n in classes))
