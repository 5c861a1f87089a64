"""What is still to be done, and about how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .data import is_made
from .jobs import Job
from .layout import Layout
from .runner import describe_state, pending
from .specification import Specification

SECONDS_AN_ITERATION = 0.1
"""Of the tiny Faster R-CNN on shapes, 8 images an iteration, on one core; while nothing is measured here."""

SECONDS_AN_EVALUATION = 20.0
"""Of the same on 500 images, start of the process included."""

SECONDS_AN_IMAGE = 0.012
"""To generate an image with all annotation formats and put it into a store."""


def describe_work(
    specification: Specification, jobs: Sequence[Job], layout: Layout
) -> tuple[list[str], float]:
    """One line a job, and the processor time of all that are to be done, in seconds.

    Time is estimated from the finished jobs of the same row, or of all rows, else from the constants above.
    """
    todo = {job.place for job in pending(jobs, layout)}
    finished = [result for job in jobs if (result := layout.result(job)) is not None]
    lines, total = [], 0.0
    for seconds, line in _data_lines(specification, [job for job in jobs if job.place in todo], layout):
        total += seconds
        lines.append(line)
    for job in jobs:
        work = "evaluate" if job.is_evaluation else f"train {job.iterations:,} iterations"
        if job.place not in todo:
            lines.append(f"done       {'':>8}  {job.place}: {work}")
            continue
        seconds = _seconds(job, finished)
        total += seconds
        begun = describe_state(job, layout).get("attempts") and not job.is_evaluation
        lines.append(f"{'continue' if begun else 'to do':<10} {seconds:6.0f} s  {job.place}: {work}")
    return lines, total


def _data_lines(specification: Specification, todo: Sequence[Job], layout: Layout) -> list[tuple[float, str]]:
    lines: dict[Any, tuple[float, str]] = {}
    for job in todo:
        data = specification.data[job.data]
        root = layout.data_root(data, job.seed)
        if data.options is None or root in lines or is_made(data, job.seed, layout):
            continue
        images = data.options.train_images + data.options.validation_images
        seconds = SECONDS_AN_IMAGE * images
        lines[root] = (seconds, f"{'to do':<10} {seconds:6.0f} s  data {root.name}: {images:,} images")
    return list(lines.values())


def _seconds(job: Job, finished: Sequence[dict[str, Any]]) -> float:
    kind = [one for one in finished if ("@" in one["line"]) == job.is_evaluation]
    same = [one for one in kind if one["line"] == job.line] or kind
    if job.is_evaluation:
        return median([one["cpu_seconds"] for one in same]) if same else SECONDS_AN_EVALUATION
    rates = [one["cpu_seconds"] / one["iterations"] for one in same if one["iterations"]]
    if rates:
        return median(rates) * job.iterations
    return SECONDS_AN_ITERATION * job.iterations + SECONDS_AN_EVALUATION
