"""Pictures of a table: values with their spread, paired differences, and sweeps over a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plot_style import COLORS, GRID, MARKERS, MUTED, draw_legend, new_figure, save_picture
from .specification import Specification
from .spread import mean_over_seeds
from .sweep_plot import draw_sweep
from .tables import Values, differences


@dataclass(frozen=True)
class _Mark:
    """One mean in a plot: `half` on either side is drawn thick, `wide` thin; `singles` are small dots."""

    mean: float
    half: float
    wide: float = math.nan
    singles: Sequence[float] = ()


def draw_plots(specification: Specification, values: Values, folder: Path) -> list[Path]:
    """Writes plot.png (values, or the sweep where rows have an `x`) and differences.png.

    Args:
        specification: of the table.
        values: from :func:`longtail_det2.ablation.tables.arrange`.
        folder: to write to.

    Returns:
        The files, those that have something to show.
    """
    written = []
    swept = [row for row in specification.rows if row.x is not None and not row.hidden]
    if len(swept) > 1:
        written += save_picture(draw_sweep(specification, values), folder / "plot.png")
    else:
        written += save_picture(_values(specification, values), folder / "plot.png")
    return written + save_picture(_differences(specification, values), folder / "differences.png")


def _values(specification: Specification, values: Values) -> Figure | None:
    def mark(data: str, line: str, metric: str) -> _Mark | None:
        singles = values.get((data, line, metric), {})
        mean = mean_over_seeds(singles)
        return _Mark(mean.mean, mean.sd, singles=list(singles.values())) if mean.n else None

    note = "large: mean of the seeds, bar: ± standard deviation, small: each seed"
    return _dots(specification, mark, specification.lines(), f"%   ({note})", zero=False)


def _differences(specification: Specification, values: Values) -> Figure | None:
    def mark(data: str, line: str, metric: str) -> _Mark | None:
        mean = differences(specification, values, data, line, metric)
        return _Mark(mean.mean, mean.se, mean.half_interval) if mean.n else None

    baseline = dict(specification.lines())[specification.baseline]
    lines = [line for line in specification.lines() if line[0] != specification.baseline]
    note = "thick: ± standard error, thin: 95 % interval"
    return _dots(
        specification, mark, lines, f"difference to {baseline}, percentage points   ({note})", zero=True
    )


def _dots(
    specification: Specification,
    mark: Callable[[str, str, str], _Mark | None],
    lines: Sequence[tuple[str, str]],
    x_label: str,
    *,
    zero: bool,
) -> Figure | None:
    """One panel a metric, one row a line of the table, one colour a data set; None without a mark."""
    metrics = specification.plot_metrics
    keys = [(data, line, one) for one in metrics for data in specification.data for line, _ in lines]
    marks = {key: found for key in keys if (found := mark(*key)) is not None}
    if not marks:
        return None
    lines = [line for line in lines if any(key[1] == line[0] for key in marks)]
    sets = [data for data in specification.data if any(key[0] == data for key in marks)]
    label_width = 0.078 * max(len(label) for _, label in lines)
    height = max(0.21 * len(sets) + 0.16, 0.34) * len(lines) + 1.25
    with new_figure(min(label_width + 0.6 + 2.1 * len(metrics), 18), height) as figure:
        panels = figure.subplots(1, len(metrics), sharex=zero, sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _prepare(axes, specification.metrics[metric], len(lines), zero)
            for place, data in enumerate(sets):
                for row, (line, _) in enumerate(lines):
                    if (data, line, metric) in marks:
                        _draw(axes, marks[data, line, metric], row + _offset(place, len(sets)), place)
        panels[0].set_yticks(range(len(lines)), [label for _, label in lines])
        panels[0].set_ylim(len(lines) - 0.45, -0.55)
        figure.supxlabel(x_label, fontsize=9, color=MUTED)
        if len(sets) > 1:
            draw_legend(figure, [(data, place) for place, data in enumerate(sets)])
        return figure


def _prepare(axes: Axes, title: str, rows: int, zero: bool) -> None:
    """Title, grid and the lines between rows."""
    axes.set_title(title, loc="left")
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if zero:
        axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for boundary in range(1, rows):
        axes.axhline(boundary - 0.5, color=GRID, linewidth=0.5, zorder=0)


def _offset(place: int, number: int) -> float:
    """Where in its row a data set stands."""
    step = 0.26 if number < 3 else 0.7 / number
    return step * (place - (number - 1) / 2)


def _draw(axes: Axes, mark: _Mark, y: float, place: int) -> None:
    color = COLORS[place % len(COLORS)]
    for half, width in ((mark.wide, 0.9), (mark.half, 2.2)):
        if not math.isnan(half):
            axes.plot([mark.mean - half, mark.mean + half], [y, y], color=color, linewidth=width, zorder=2)
    if len(mark.singles) > 1:
        points = axes.scatter(mark.singles, [y] * len(mark.singles), s=9, color="white", edgecolors=color)
        points.set(linewidths=0.8, zorder=4)
    marker = MARKERS[place % len(MARKERS)]
    axes.scatter([mark.mean], [y], s=34, color=color, marker=marker, zorder=3)
