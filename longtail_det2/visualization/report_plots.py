"""The report's plots as SVG images: AP against training frequency, the long tail, training curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .category_plots import plot_long_tail
from .run_data import Evaluation
from .style import COLORS, INK, MARKERS, log_scale, plot_figure

GROUPS = ("head", "medium", "tail", "frequent", "common", "rare", "leaf", "inner")
COLOR_OF: dict[str, str] = dict(zip(GROUPS, (*COLORS[:3], *COLORS[:3], COLORS[0], COLORS[5]), strict=True))
"""Colours of the groups of classes; see `Evaluation.group_of`."""
_MARKERS = (*MARKERS[:3], *MARKERS[:3], MARKERS[0], MARKERS[3])
_MARKER_OF: dict[str, str] = dict(zip(GROUPS, _MARKERS, strict=True))


def ap_plot(evaluation: Evaluation, ap_label: str) -> str | None:
    """Plot the AP of each class against its training images.

    Args:
        evaluation: gives classes, their groups and the AP to show.
        ap_label: of the axis.

    Returns:
        Data URI of an SVG; None if no class has both numbers.
    """
    key = evaluation.ap_key
    classes = [one for one in evaluation.classes if None not in (one.get("train_images"), one.get(key))]
    if not classes:
        return None
    with _plot() as (axes, uri):
        for group, color in COLOR_OF.items():
            members = [one for one in classes if evaluation.group_of(one) == group]
            if not members:
                continue
            counts = [one["train_images"] for one in members]
            values = [100 * one[key] for one in members]
            face = "none" if group == "inner" else color
            style = {
                "color": color,
                "markerfacecolor": face,
                "markersize": 5,
                "alpha": 0.85,
                "clip_on": False,
            }
            axes.plot(counts, values, _MARKER_OF[group], label=f"{group} ({len(members)})", **style)
            if group != "inner":
                axes.plot([min(counts), max(counts)], [np.mean(values)] * 2, color=color, linewidth=1.6)
        axes.set_ylim(0, 100)
        log_scale(axes, "x", counts=True)
        axes.set(xlabel="training images of the class (logarithmic)", ylabel=ap_label)
    return uri[0]


def long_tail_plot(evaluation: Evaluation) -> str | None:
    """Plot the training images of the leaf classes by rank; None if they are unknown."""
    known = [one for one in evaluation.classes if one["is_leaf"] and one["train_images"] is not None]
    if not known:
        return None
    groups = [evaluation.group_of(one) for one in known]
    names = [group for group in GROUPS if group in groups]
    counts = np.array([one["train_images"] for one in known])
    with _plot(columns=2) as (axes, uri):
        bins = np.array([names.index(group) for group in groups])
        plot_long_tail(axes, counts, bins, names, [COLOR_OF[name] for name in names])
        axes.set_xlabel("leaf classes by frequency")
    return uri[0]


def training_plots(log: Mapping[str, np.ndarray]) -> list[str]:
    """Plot the losses, as logged and as moving average, and the learning rate if logged."""
    if not log:
        return []
    x = log["iteration"]
    marker = "." if len(x) == 1 else ""
    with _plot() as (axes, losses):
        names = ["total_loss", *sorted(name for name in log if name.startswith("loss"))]
        for name, color in zip(names, (INK, *COLORS, *COLORS), strict=False):
            known = log[name] > 0
            if known.any():
                axes.plot(x[known], log[name][known], color=color, linewidth=0.8, alpha=0.28)
                label = name.removeprefix("loss_").replace("_", " ")
                axes.plot(x[known], smooth(log[name][known]), color=color, label=label, marker=marker)
        log_scale(axes, "y")
        axes.set(xlabel="iteration", ylabel="loss (logarithmic)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if "lr" not in log:
        return losses
    with _plot() as (axes, rates):
        axes.plot(x, log["lr"], color=COLORS[0], marker=marker)
        axes.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return losses + rates


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average of a curve (T,) over 4 % of it."""
    window = np.ones(max(round(0.04 * len(values)), 1))
    sums, counts = (np.convolve(one, window, "same") for one in (values, np.ones(len(values))))
    return sums / counts


@contextmanager
def _plot(columns: int = 4) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes, and a list that holds the plot's data URI, with its legend, once the block has ended."""
    uri: list[str] = []
    with plot_figure(5.2, 3.7) as figure:  # inches: readable at half the page's width and on a telephone
        axes = figure.subplots()
        yield axes, uri
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        uri.append("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
