"""The report's plots as inline SVG: AP against training frequency, the long tail, training curves."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .category_plots import plot_long_tail
from .run_data import Evaluation
from .style import COLORS, INK, MARKERS, log_scale, plot_figure

GROUPS = ("head", "medium", "tail", "frequent", "common", "rare", "leaf", "inner")
COLOR_OF: dict[str, str] = dict(zip(GROUPS, (*COLORS[:3], *COLORS[:3], COLORS[0], COLORS[5]), strict=True))
"""Colours of the groups of classes; see `Evaluation.group_of`."""
_MARKER_OF = dict(zip(GROUPS, (*MARKERS[:3], *MARKERS[:3], MARKERS[0], MARKERS[3]), strict=True))
_SVG = "{http://www.w3.org/2000/svg}"
_SIZE = 5.2, 3.7
"""In inches: readable at half the page's width and on a telephone."""


def ap_plot(evaluation: Evaluation, ap_label: str) -> str | None:
    """Plot the AP of each class against its training images, with its numbers as hover text.

    Args:
        evaluation: gives classes, their groups and the AP to show.
        ap_label: of the axis.

    Returns:
        SVG; None if no class has both numbers.
    """
    key = evaluation.ap_key
    classes = [one for one in evaluation.classes if None not in (one.get("train_images"), one.get(key))]
    if not classes:
        return None
    hover: dict[str, list[str]] = {}
    with plot_figure(*_SIZE) as figure:
        axes = figure.subplots()
        for group in GROUPS:
            members = [one for one in classes if evaluation.group_of(one) == group]
            if not members:
                continue
            counts = [one["train_images"] for one in members]
            values = [100 * one[key] for one in members]
            color = COLOR_OF[group]
            gid, face = f"classes-{group}", "none" if group == "inner" else color
            style = {
                "color": color,
                "markerfacecolor": face,
                "markersize": 5,
                "alpha": 0.85,
                "clip_on": False,
            }
            label = f"{group} ({len(members)})"
            axes.plot(counts, values, _MARKER_OF[group], gid=gid, label=label, **style)
            hover[gid] = [
                f"{one['name']}: AP {100 * one[key]:.1f} %, {one['train_images']:,} training images"
                for one in members
            ]
            if group != "inner":
                axes.plot([min(counts), max(counts)], [np.mean(values)] * 2, color=color, linewidth=1.6)
        axes.set_ylim(0, 100)
        log_scale(axes, "x", counts=True)
        axes.set(xlabel="training images of the class (logarithmic)", ylabel=ap_label)
        return _finish(figure, "AP of each class against its number of training images", hover)


def long_tail_plot(evaluation: Evaluation) -> str | None:
    """Plot the training images of the leaf classes by rank; None if they are unknown."""
    known = [one for one in evaluation.classes if one["is_leaf"] and one["train_images"] is not None]
    if not known:
        return None
    groups = [evaluation.group_of(one) for one in known]
    names = [group for group in GROUPS if group in groups]
    counts, bins = np.array(
        [(one["train_images"], names.index(g)) for one, g in zip(known, groups, strict=True)]
    ).T
    with plot_figure(*_SIZE) as figure:
        axes = figure.subplots()
        plot_long_tail(axes, counts, bins, names, [COLOR_OF[name] for name in names])
        axes.set_xlabel("leaf classes by frequency")
        return _finish(figure, "Training images of each leaf class, by rank", columns=2)


def training_plots(log: Mapping[str, np.ndarray]) -> list[str]:
    """Plot the losses, as logged and as moving average, and the learning rate if logged."""
    if not log:
        return []
    plots = []
    x = log["iteration"]
    marker = "." if len(x) == 1 else ""
    with plot_figure(*_SIZE) as figure:
        axes = figure.subplots()
        names = ["total_loss", *sorted(name for name in log if name.startswith("loss"))]
        for name, color in zip(names, (INK, *COLORS, *COLORS), strict=False):
            known = log[name] > 0
            if not known.any():
                continue
            axes.plot(x[known], log[name][known], color=color, linewidth=0.8, alpha=0.28)
            label = name.removeprefix("loss_").replace("_", " ")
            axes.plot(x[known], smooth(log[name][known]), color=color, label=label, marker=marker)
        log_scale(axes, "y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set(xlabel="iteration", ylabel="loss (logarithmic)")
        plots.append(_finish(figure, "Training losses against the iteration"))
    if "lr" in log:
        with plot_figure(*_SIZE) as figure:
            axes = figure.subplots()
            axes.plot(x, log["lr"], color=COLORS[0], marker=marker)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
            plots.append(_finish(figure, "Learning rate against the iteration"))
    return plots


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average of a curve (T,) over 4 % of it."""
    window = np.ones(max(round(0.04 * len(values)), 1))
    sums, counts = (np.convolve(one, window, "same") for one in (values, np.ones(len(values))))
    return sums / counts


def _finish(
    figure: Figure, description: str, hover: Mapping[str, Sequence[str]] | None = None, columns: int = 4
) -> str:
    """Add the legend and return an `<svg>` element.

    Args:
        figure: of one plot.
        description: for readers who do not see it; keeps the ids of several plots on a page apart.
        hover: texts of the markers of a line by its gid.
        columns: of the legend.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": description}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(re.findall(r"#([\w-]+)", buffer.getvalue().decode()))
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        texts = (hover or {}).get(element.get("id", ""), ())
        for marker, text in zip(element.iter(f"{_SVG}use"), texts, strict=False):
            ElementTree.SubElement(marker, "title").text = text
        element.attrib = {
            name.rpartition("}")[2]: value
            for name, value in element.attrib.items()
            if name != "id" or value in used
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")
