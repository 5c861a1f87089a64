"""Curves over the number that a table sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plot_style import COLORS, GRID, MARKERS, draw_legend, new_figure
from .specification import Row, Specification
from .spread import Mean, mean_over_seeds
from .tables import Values

__all__ = ["draw_sweep"]


def draw_sweep(specification: Specification, values: Values) -> Figure | None:
    """One panel a data set, one curve a metric over the rows' `x`; rows without one stand at the right."""
    shown = [row for row in specification.rows if not row.hidden]
    sets = [data for data in specification.data if any(key[0] == data for key in values)]
    if not sets:
        return None
    places, ticks = _places(shown)
    with new_figure(2.2 + max(3.4, 0.75 * len(shown)) * len(sets), 3.9) as figure:
        panels = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for axes, data in zip(panels, sets, strict=True):
            axes.grid(True)
            axes.set_axisbelow(True)
            if len(sets) > 1:
                axes.set_title(data, loc="left")
            for number, metric in enumerate(specification.plot_metrics):
                means = {row.name: mean_over_seeds(values.get((data, row.name, metric), {})) for row in shown}
                _curve(axes, shown, places, means, number)
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.set_xlabel(specification.x_label)
            if len(ticks) > sum(row.x is not None for row in shown):
                last = max(row.x for row in shown if row.x is not None)
                first = min(places[row.name] for row in shown if row.x is None)
                axes.axvline((last + first) / 2, color=GRID, linewidth=1)
        panels[0].set_ylabel("mean ± standard deviation, %")
        names = [specification.metrics[metric] for metric in specification.plot_metrics]
        draw_legend(figure, [(name, number) for number, name in enumerate(names)])
        return figure


def _places(rows: Sequence[Row]) -> tuple[dict[str, float], dict[float, str]]:
    """Where each row stands on the x axis, and the labels of the axis."""
    numbers = sorted({row.x for row in rows if row.x is not None})
    gap = max((numbers[-1] - numbers[0]) / 4, 1e-9)
    places: dict[str, float] = {}
    ticks: dict[float, str] = {one: f"{one:g}" for one in numbers}
    beyond = numbers[-1] + gap
    for row in rows:
        if row.x is not None:
            places[row.name] = row.x
        else:
            places[row.name] = beyond
            ticks[beyond] = _folded(row.label)
            beyond += gap
    return places, ticks


def _folded(label: str, width: int = 14) -> str:
    """The label in lines of about `width` characters."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _curve(
    axes: Axes, rows: Sequence[Row], places: Mapping[str, float], means: Mapping[str, Mean], number: int
) -> None:
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "capsize": 2.5}
    with_x = sorted((row for row in rows if row.x is not None), key=lambda row: row.x or 0.0)
    for group, joined in ((with_x, "-"), ([row for row in rows if row.x is None], "none")):
        group = [row for row in group if means[row.name].n]
        if group:
            axes.errorbar(
                [places[row.name] for row in group],
                [means[row.name].mean for row in group],
                yerr=[0.0 if math.isnan(means[row.name].sd) else means[row.name].sd for row in group],
                linestyle=joined,
                linewidth=1.6,
                elinewidth=1,
                **style,
            )
