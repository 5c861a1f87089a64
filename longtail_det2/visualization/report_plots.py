"""The report's figures: AP against training frequency, the long tail itself, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from longtail_det2.visualization.run_data import ClassResult, TrainingLog
from longtail_det2.visualization.svg_theme import COLORS, SERIES, new_figure, style_axes, to_svg

__all__ = [
    "COLOR_OF_GROUP",
    "GROUP_NAMES",
    "ap_figure",
    "frequency_figure",
    "group_of_class",
    "training_figure",
]

GROUP_NAMES = {
    "head": "head",
    "medium": "medium",
    "tail": "tail",
    "frequent": "frequent",
    "common": "common",
    "rare": "rare",
    "leaf": "leaf classes",
    "inner": "inner classes (have subclasses)",
}
"""What the legends call the kinds of classes."""

COLOR_OF_GROUP = {
    **{name: name for name in ("head", "medium", "tail", "inner")},
    "frequent": "head",
    "common": "medium",
    "rare": "tail",
    "leaf": "s1",
}
"""Names of colours of the theme."""

_MARKERS = {"head": "o", "medium": "s", "tail": "^", "s1": "o", "inner": "D"}
_ZERO_AT = 0.5
"""Where the logarithmic axis shows the count 0."""


def group_of_class(result: ClassResult) -> str:
    """Key of GROUP_NAMES: the frequency group; else whether the class is a leaf."""
    if not result.is_leaf:
        return "inner"
    return result.group if result.group in COLOR_OF_GROUP else "leaf"


def ap_figure(classes: Sequence[ClassResult], task: str = "", label: str = "AP at IoU 0.5, %") -> str | None:
    """SVG of AP against training images, one mark a class; None if no class has both.

    Args:
        classes: of an evaluation.
        task: whose AP, see :meth:`ClassResult.ap_of`.
        label: of the axis.
    """
    shown = [one for one in classes if one.train_images is not None and not math.isnan(one.ap_of(task))]
    if not shown:
        return None
    titles: dict[str, list[str]] = {}
    with new_figure(8.6, 4.2) as figure:
        axes = figure.subplots()
        style_axes(axes, "training images with the class (logarithmic)", label)
        for group, name in GROUP_NAMES.items():
            members = [one for one in shown if group_of_class(one) == group]
            if not members:
                continue
            counts = np.array([max(one.train_images or 0, _ZERO_AT) for one in members])
            values = np.array([100 * one.ap_of(task) for one in members])
            _scatter(axes, counts, values, group, f"{name} ({len(members)})", f"dots-{group}")
            titles[f"dots-{group}"] = [_hover(one, task) for one in members]
            if group != "inner":
                ends = (counts.min() / 1.06, counts.max() * 1.06)
                color = COLORS[COLOR_OF_GROUP[group]]
                axes.plot(ends, [values.mean()] * 2, color=color, linewidth=1.6, alpha=0.75)
        axes.set_ylim(-3, 103)
        _log_axis(axes, "x", [max(one.train_images or 0, _ZERO_AT) for one in shown])
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.4)
        return to_svg(figure, "ap", "AP of each class against its number of training images", titles)


def frequency_figure(classes: Sequence[ClassResult], task: str = "") -> str | None:
    """SVG of training images by rank, leaves and inner classes apart; None without training counts.

    Args:
        classes: of an evaluation.
        task: whose AP the marks tell, see :meth:`ClassResult.ap_of`.
    """
    known = [one for one in classes if one.train_images is not None]
    if not known:
        return None
    titles: dict[str, list[str]] = {}
    with new_figure(8.6, 3.4) as figure:
        axes = figure.subplots()
        style_axes(axes, "rank of the class by training images", "training images (logarithmic)")
        leaves = _by_count([one for one in known if one.is_leaf])
        inner = _by_count([one for one in known if not one.is_leaf])
        if leaves:
            heights = [max(one.train_images or 0, _ZERO_AT) for one in leaves]
            axes.plot(range(1, len(leaves) + 1), heights, color=COLORS["grid"], linewidth=1, zorder=1)
        for group, name in GROUP_NAMES.items():
            ranked = [
                (rank, one)
                for rank, one in enumerate(inner if group == "inner" else leaves, 1)
                if group_of_class(one) == group
            ]
            if not ranked:
                continue
            ranks = np.array([rank for rank, _ in ranked], dtype=float)
            counts = np.array([max(one.train_images or 0, _ZERO_AT) for _, one in ranked])
            if group != "inner":
                color = COLORS[COLOR_OF_GROUP[group]]
                axes.vlines(ranks, _ZERO_AT, counts, color=color, linewidth=1, alpha=0.35)
            _scatter(axes, ranks, counts, group, f"{name} ({len(ranked)})", f"rank-{group}")
            titles[f"rank-{group}"] = [_hover(one, task) for _, one in ranked]
        _log_axis(axes, "y", [max(one.train_images or 0, _ZERO_AT) for one in known])
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.4)
        return to_svg(figure, "frequency", "Training images of each class, by rank", titles)


def training_figure(log: TrainingLog | None) -> str | None:
    """SVG of the losses (raw and smoothed) and of the learning rate; None without a log."""
    if log is None or not log.losses:
        return None
    has_rate = "lr" in log.values and not np.isnan(log.values["lr"]).all()
    with new_figure(8.6, 4.8 if has_rate else 3.6) as figure:
        ratios = [3.2, 1] if has_rate else [1]
        panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        style_axes(panels[0], "" if has_rate else "iteration", "loss (logarithmic)")
        for place, name in enumerate(log.losses):
            color = COLORS["ink" if name == "total_loss" else SERIES[(place - 1) % len(SERIES)]]
            values = log.values[name]
            known = ~np.isnan(values) & (values > 0)
            x, y = log.iteration[known], values[known]
            if not len(y):
                continue
            panels[0].plot(x, y, color=color, linewidth=0.8, alpha=0.28)
            label = name.removeprefix("loss_").replace("_", " ")
            wide = 2.0 if name == "total_loss" else 1.5
            panels[0].plot(
                x, smooth(y), color=color, linewidth=wide, label=label, marker="." if len(x) == 1 else ""
            )
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter(FuncFormatter(_plain_number))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if has_rate:
            style_axes(panels[1], "iteration", "learning rate")
            panels[1].plot(log.iteration, log.values["lr"], color=COLORS["s1"], linewidth=1.4)
            panels[1].set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=6, columnspacing=1.4)
        return to_svg(figure, "training", "Training losses and learning rate against the iteration")


def smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Exponential moving average over about `share` of the curve, without the bias of its start.

    Args:
        values: (T,) finite.
        share: averaging length as a part of T, in (0, 1].
    """
    keep = 1 - 1 / max(share * len(values), 1.0)
    smoothed = np.empty(len(values))
    total = weight = 0.0
    for place, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        smoothed[place] = total / weight
    return smoothed


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, group: str, label: str, gid: str) -> None:
    kind = COLOR_OF_GROUP[group]
    color = COLORS[kind]
    face = "none" if group == "inner" else color
    size = 30 if kind == "tail" else 24
    style = {"s": size, "marker": _MARKERS[kind], "linewidths": 1.1, "alpha": 0.85}
    points = axes.scatter(x, y, c=face, edgecolors=color, label=label, **style)
    points.set(gid=gid, zorder=3, clip_on=False)


def _log_axis(axes: Axes, which: str, counts: Sequence[float]) -> None:
    """Logarithmic axis with plain numbers, and a place for the count 0."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = min(counts), max(max(counts), 10)
    limits = (low / 1.25 if low > _ZERO_AT else _ZERO_AT / 1.25, high * 1.25)
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    first = math.floor(math.log10(low)) if low >= 1 else 0
    steps = (1, 2, 5) if high / max(low, 1) < 1e4 else (1,)
    ticks = [step * 10.0**power for power in range(first, math.ceil(math.log10(high)) + 1) for step in steps]
    ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    if low < 1:
        ticks.insert(0, _ZERO_AT)
    axis.set_ticks(ticks)
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value <= _ZERO_AT else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _position: int | None = None) -> str:
    return f"{value:g}"


def _by_count(classes: Sequence[ClassResult]) -> list[ClassResult]:
    return sorted(classes, key=lambda one: (-(one.train_images or 0), one.name))


def _hover(one: ClassResult, task: str) -> str:
    ap = "no ground truth" if math.isnan(one.ap_of(task)) else f"AP {100 * one.ap_of(task):.1f} %"
    text = f"{one.name}: {ap}, {one.train_images:,} training images"
    return text if math.isnan(one.num_gt) else f"{text}, {one.num_gt:g} objects to find"
