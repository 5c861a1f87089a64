"""Plots in one style: of class statistics as PNG or SVG files, of a run as the report's SVG images."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, SymmetricalLogLocator

from longtail_det2.data.statistics import FREQUENCY_BINS, ClassStatistics
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer
from longtail_det2.utils.wording import pluralize

INK = "#15181d"
COLORS = ("#0068a8", "#b06f00", "#bb2a6b", "#16836a", "#7351b5", "#6b7482")
_MARKS = {
    **dict.fromkeys(("head", "frequent", "leaf"), (COLORS[0], "o")),
    **dict.fromkeys(("medium", "common"), (COLORS[1], "s")),
    **dict.fromkeys(("tail", "rare"), (COLORS[2], "^")),
    "inner": (COLORS[5], "D"),
}
COLOR_OF = {group: color for group, (color, _) in _MARKS.items()}
"""Colours of the groups of classes."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dfe3e8",
    "svg.fonttype": "none",
    "svg.hashsalt": "longtail_det2",
}
"""On top of Matplotlib's seaborn-v0_8-whitegrid."""
_HEAT = LinearSegmentedColormap.from_list("rates", ["#ffffff", "#cfe3f1", "#6aaed6", "#0068a8", "#062c4a"])
_TICKS = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 1)


def related_classes(statistics: ClassStatistics) -> np.ndarray:
    """Return the pairs (K, K) of classes that one label implies: ancestor and descendant, or two ancestors.

    The rates of other pairs come from objects with several labels alone.
    """
    implied = np.eye(len(statistics.class_ids), dtype=np.float32)
    if statistics.hierarchy is not None:
        implied += statistics.hierarchy.ancestors
    return implied.T @ implied > 0


def most_cooccurring(statistics: ClassStatistics, number: int = 40) -> np.ndarray:
    """Return at most `number` classes, those with the strongest partners, with partners side by side.

    A class counts by its highest rate with an unrelated class, in either direction. A rate of n objects is
    taken as r n / (n + 10), or a class that occurs once would come first. Related classes count where nothing
    else co-occurs; classes without any rate above 0 are left out.
    """
    objects = statistics.known_cooccurrence.diagonal()
    trusted = statistics.rates() * (objects / (objects + 10))[:, None]
    both = np.maximum(trusted, trusted.T)
    score = np.where(related_classes(statistics), 0.0, both).max(axis=1) + 1e-6 * both.max(axis=1)
    chosen = [int(c) for c in np.argsort(-score, kind="stable")[:number] if score[c] > 0]
    order: list[int] = []
    while chosen:
        # The strongest partner of the last one; a new block begins with the strongest of what is left.
        links = both[order[-1], chosen] if order else np.zeros(1)
        order.append(chosen.pop(int(links.argmax()) if links.max() > 0 else 0))
    return np.array(order, dtype=np.int64)


def draw_heat_map(path: Path, rates: np.ndarray, class_names: Sequence[str], classes: np.ndarray) -> None:
    """Draw the co-occurrence rates P(j | i) between some classes.

    Args:
        path: .png or .svg file, written atomically.
        rates: (K, K).
        class_names: K names.
        classes: indices of n >= 1 classes, in the order to draw.

    Raises:
        DataError: the file cannot be written.
    """
    side, places = max(0.25 * len(classes), 2.4), np.arange(len(classes)) + 0.5
    names = [_label(class_names[int(c)]) for c in classes]
    diagonal = np.eye(len(classes), dtype=bool)
    shown = np.ma.masked_array(rates[np.ix_(classes, classes)], mask=diagonal)
    with _plot(side + 3.6, side + 2.4, path) as (axes, _):
        colors = {"cmap": _HEAT.with_extremes(bad="#eceff2"), "norm": PowerNorm(0.5, 0, 1)}
        cells = axes.pcolormesh(shown, edgecolors="#dfe3e8", linewidth=0.25, **colors)
        size = float(np.clip(72 * side / len(classes) * 0.55, 3.5, 9))
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set(xlabel="... is also of class j", ylabel="an object of class i ...")
        axes.set(aspect="equal", ylim=(len(classes), 0))
        some = "" if len(classes) == len(rates) else f", {len(classes)} of {len(rates)} classes"
        axes.set_title(f"Co-occurrence rates P(j | i){some}")
        for (row, column), value in np.ndenumerate(shown.filled(0)) if len(classes) <= 14 else ():
            if value > 0:
                text = "1" if value == 1 else f"{value:.2f}".lstrip("0") if value >= 0.005 else "<.01"
                form: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
                form["color"] = "#ffffff" if value > 0.3 else INK
                axes.text(column + 0.5, row + 0.5, text, **form)
        bar = axes.figure.colorbar(cells, ax=axes, shrink=0.8, aspect=30, ticks=_TICKS, format="%g")
        bar.outline.set_visible(False)


def draw_long_tail(path: Path, counts: np.ndarray, bins: np.ndarray) -> None:
    """Draw the images of the classes (K,), the most frequent first, with head, medium and tail in colours.

    `bins` (K,) are indices into `FREQUENCY_BINS`, the rest is as in `draw_heat_map`.
    """
    with _plot(8.6, 4.4, path) as (axes, _):
        _draw_bars(axes, counts, np.array(FREQUENCY_BINS)[bins])
        axes.set_xlabel("classes by frequency (legend: classes of a group, and their share of the counts)")
        axes.set_title(f"{pluralize(len(counts), 'class', 'classes')}; {inequality_text(counts)}")


def inequality_text(counts: np.ndarray) -> str:
    """Tell how unequal the counts (K,) are: largest to smallest of those above 0, and the Gini coefficient.

    The coefficient is sum_i sum_j |n_i - n_j| / (2 K sum_i n_i) over all classes: 0 when all are equally
    frequent, 1 - 1/K when one class has everything.
    """
    ascending = np.sort(counts)
    occurring = ascending[ascending > 0]
    if len(occurring) == 0:
        return "no class has images"
    weights = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    gini, ratio = weights @ ascending / (len(counts) * ascending.sum()), occurring[-1] / occurring[0]
    shown = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
    return f"most frequent : rarest = {shown} : 1, Gini {gini:.3f}"


def ap_plot(classes: Sequence[tuple[str, int, float]], ap_label: str) -> str:
    """Plot the AP of classes, given as (group, training images, AP), against their training images."""
    with _plot() as (axes, uri):
        for group, (color, marker) in _MARKS.items():
            counts = [count for name, count, _ in classes if name == group]
            values = [100 * ap for name, _, ap in classes if name == group]
            if not counts:
                continue
            form = {"markersize": 5, "alpha": 0.85, "clip_on": False, "label": f"{group} ({len(counts)})"}
            face = "none" if group == "inner" else color
            axes.plot(counts, values, marker, color=color, markerfacecolor=face, **form)
            if group != "inner":
                axes.plot([min(counts), max(counts)], [np.mean(values)] * 2, color=color, linewidth=1.6)
        axes.set(xlabel="training images of the class (logarithmic)", ylabel=ap_label, ylim=(0, 100))
        _log_scale(axes, "x", counts=True)
    return uri[0]


def long_tail_plot(groups: Sequence[str], counts: Sequence[int]) -> str:
    """Plot the training images of leaf classes, given with their groups, by rank."""
    with _plot(columns=2) as (axes, uri):
        _draw_bars(axes, np.array(counts), np.array(groups))
        axes.set_xlabel("leaf classes by frequency")
    return uri[0]


def training_plots(log: Mapping[str, np.ndarray]) -> list[str]:
    """Plot the losses, as logged and as moving average, and the learning rate if logged."""
    if not log:
        return []
    x = log["iteration"]
    marker = "." if len(x) == 1 else ""
    with _plot() as (axes, uris):
        names = ["total_loss", *sorted(name for name in log if name.startswith("loss"))]
        for name, color in zip(names, (INK, *COLORS, *COLORS), strict=False):
            known = log[name] > 0
            if known.any():
                axes.plot(x[known], log[name][known], color=color, linewidth=0.8, alpha=0.28)
                label = name.removeprefix("loss_").replace("_", " ")
                axes.plot(x[known], smooth(log[name][known]), color=color, label=label, marker=marker)
        _log_scale(axes, "y")
        axes.set(xlabel="iteration", ylabel="loss (logarithmic)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if "lr" in log:
        with _plot() as (axes, rates):
            axes.plot(x, log["lr"], color=COLORS[0], marker=marker)
            axes.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        uris += rates
    return uris


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average of a curve (T,) over 4 % of it."""
    window = np.ones(max(round(0.04 * len(values)), 1))
    sums, counts = (np.convolve(one, window, "same") for one in (values, np.ones(len(values))))
    return sums / counts


def data_uri(kind: str, content: bytes) -> str:
    """Return an image as the address that a page shows it by."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@contextmanager
def _plot(
    width: float = 5.2, height: float = 3.7, path: Path | None = None, *, columns: int = 4
) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes in this style; when the block ends, their plot gets its legend and is saved.

    The size is in inches; the default is readable at half the page's width and on a telephone. Without a path
    the list that is given besides gets the data URI of an SVG. Equal plots give equal files.
    """
    form, stream, uris = path.suffix[1:] if path else "svg", io.BytesIO(), []
    with style.context(["seaborn-v0_8-whitegrid", _STYLE]), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        yield axes, uris
        if handles := axes.get_legend_handles_labels()[0]:
            figure.legend(handles=handles, loc="outside upper left", ncols=columns)
        figure.savefig(stream, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    if path is None:
        uris.append(data_uri("svg+xml", stream.getvalue()))
        return
    try:
        with atomic_writer(path, "wb") as file:
            file.write(stream.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None


def _draw_bars(axes: Axes, counts: np.ndarray, groups: np.ndarray) -> None:
    """Draw counts (K,) of classes as bars, the most frequent first, in the colours of their groups (K,)."""
    order = np.argsort(-counts, kind="stable")
    ranks, counts, groups = np.arange(1, len(order) + 1), counts[order], groups[order]
    for group, color in COLOR_OF.items():
        members = groups == group
        if members.any():
            share = counts[members].sum() / max(int(counts.sum()), 1)
            label = f"{group}: {pluralize(int(members.sum()), 'class', 'classes')}, {share:.1%}"
            width = 1.0 if len(order) > 150 else 0.82
            axes.bar(ranks[members], counts[members], width=width, color=color, linewidth=0, label=label)
    _log_scale(axes, "y", counts=True)
    axes.set(ylim=(0, max(int(counts.max(initial=0)), 2) * 1.4), xlim=(0.2, len(order) + 0.8))
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("images (logarithmic)")


def _log_scale(axes: Axes, which: str, *, counts: bool = False) -> None:
    """Make the axis "x" or "y" of a plot whose data are drawn logarithmic, with plain numbers.

    Where counts (whole numbers) are 0, the axis begins there and is linear below 1.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    subs = (1, 2, 5) if high < 1000 * max(low, 1) else (1,)
    if counts and low < 1:
        axes.set(**{f"{which}scale": SymmetricalLogScale(axis, linthresh=1, linscale=0.5)})
        axes.set(**{f"{which}lim": (0, None)})
        axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=subs))
    else:
        axes.set(**{f"{which}scale": "log"})
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _label(name: str) -> str:
    """A class name as it can stand at an axis: one short line that is no formula."""
    name = " ".join(name.split())
    name = name if len(name) <= 26 else name[:25] + "…"
    return name.replace("$", r"\$")
