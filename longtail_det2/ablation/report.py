"""Writes what an ablation has found so far: results.json, table.md and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtail_det2.utils.io import atomic_writer

from .jobs import Job
from .layout import Layout
from .plots import draw_plots
from .results import collect
from .specification import Specification
from .tables import arrange, markdown


def write_report(
    specification: Specification, jobs: Sequence[Job], layout: Layout, command: str, *, plots: bool = True
) -> list[Path]:
    """Writes the files that the results of the jobs allow; none before there is a result.

    Args:
        specification: of the table.
        jobs: whose results count.
        layout: of the output folder.
        command: that makes the table, as it stands below it.
        plots: False leaves the pictures as they are.

    Returns:
        The files.

    Raises:
        ConfigError: a metric of the specification is in none of the results.
    """
    results = collect(specification, jobs, layout)
    files = [layout.output / "results.json"]
    if not results:
        return files
    text = markdown(specification, results, command)
    table = layout.output / "table.md"
    with atomic_writer(table) as stream:
        stream.write(text)
    files.append(table)
    return (
        files + draw_plots(specification, arrange(specification, results), layout.output) if plots else files
    )
