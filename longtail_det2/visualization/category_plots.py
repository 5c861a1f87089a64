"""Plots of class statistics: which classes occur together, and how long the tail is; as PNG or SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import MaxNLocator

from longtail_det2.data.statistics import FREQUENCY_BINS, ClassStatistics
from longtail_det2.utils.wording import pluralize

from .style import COLORS, INK, log_scale, plot_figure

_HEAT = LinearSegmentedColormap.from_list("rates", ["#ffffff", "#cfe3f1", "#6aaed6", "#0068a8", "#062c4a"])
_TICKS = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 1)


def related_classes(statistics: ClassStatistics) -> np.ndarray:
    """Return the pairs of classes that one label implies: ancestor and descendant, or two ancestors.

    Returns:
        (K, K) bool, symmetric. The rates of other pairs come from objects with several labels alone.
    """
    implied = np.eye(len(statistics.class_ids), dtype=np.float32)
    if statistics.hierarchy is not None:
        implied += statistics.hierarchy.ancestors
    return implied.T @ implied > 0


def most_cooccurring(statistics: ClassStatistics, number: int = 40) -> np.ndarray:
    """Return the classes with the strongest partners, in an order that puts partners side by side.

    A class counts by its highest rate with an unrelated class, in either direction. A rate of n objects is
    taken as r n / (n + 10), or a class that occurs once would come first. Related classes count where nothing
    else co-occurs.

    Args:
        statistics: of K classes.
        number: upper bound of the classes.

    Returns:
        Class indices that have any rate above 0.
    """
    rates = statistics.rates()
    objects = statistics.known_cooccurrence.diagonal()
    trusted = rates * (objects / (objects + 10))[:, None]
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
    """Draw the co-occurrence rates between some classes.

    Args:
        path: .png or .svg file, written atomically.
        rates: (K, K) P(j | i).
        class_names: K names.
        classes: indices of n >= 1 classes, in the order to draw.

    Raises:
        DataError: the file cannot be written.
    """
    values = rates[np.ix_(classes, classes)]
    names = [_label(class_names[int(c)]) for c in classes]
    side = max(0.25 * len(classes), 2.4)
    with plot_figure(side + 3.6, side + 2.4, path) as figure:
        axes = figure.subplots()
        shown = np.ma.masked_array(values, mask=np.eye(len(classes), dtype=bool))
        image = axes.imshow(shown, cmap=_HEAT.with_extremes(bad="#eceff2"), norm=PowerNorm(0.5, 0, 1))
        places = np.arange(len(classes))
        size = float(np.clip(72 * side / max(len(classes), 1) * 0.55, 3.5, 9))
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.set_xticks(places[1:] - 0.5, minor=True)
        axes.set_yticks(places[1:] - 0.5, minor=True)
        axes.grid(True, which="minor", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel="... is also of class j", ylabel="an object of class i ...")
        some = "" if len(classes) == len(rates) else f", {len(classes)} of {len(rates)} classes"
        axes.set_title(f"Co-occurrence rates P(j | i){some}")
        if len(classes) <= 14:
            _write_cells(axes, shown)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, ticks=_TICKS)
        bar.ax.set_yticklabels([f"{tick:g}" for tick in _TICKS])
        bar.outline.set_visible(False)


def draw_long_tail(path: Path, counts: np.ndarray, bins: np.ndarray) -> None:
    """Draw the images of the classes, the most frequent first, with head, medium and tail in colours.

    Args:
        path: .png or .svg file, written atomically.
        counts: (K,) images per class.
        bins: (K,) indices into `FREQUENCY_BINS`.

    Raises:
        DataError: the file cannot be written.
    """
    with plot_figure(8.6, 4.4, path) as figure:
        axes = figure.subplots()
        plot_long_tail(axes, counts, bins)
        axes.set_title(f"{pluralize(len(counts), 'class', 'classes')}; {inequality_text(counts)}")
        figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower center", ncols=4)


def plot_long_tail(
    axes: Axes,
    counts: np.ndarray,
    bins: np.ndarray,
    names: Sequence[str] = FREQUENCY_BINS,
    colors: Sequence[str] = COLORS,
) -> None:
    """Plot the images of the classes as bars, the most frequent first.

    Args:
        axes: to plot into.
        counts: (K,) images per class.
        bins: (K,) indices into `names`.
        names: of the groups, for the legend.
        colors: of the groups.
    """
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(1, len(order) + 1)
    for number, name in enumerate(names):
        members = bins[order] == number
        if not members.any():
            continue
        share = counts[bins == number].sum() / max(int(counts.sum()), 1)
        label = f"{name}: {pluralize(int(members.sum()), 'class', 'classes')}, {share:.1%}"
        heights = counts[order][members]
        width = 1.0 if len(order) > 150 else 0.82
        axes.bar(ranks[members], heights, width=width, color=colors[number], linewidth=0, label=label)
    log_scale(axes, "y", counts=True)
    axes.set_ylim(0, max(int(counts.max(initial=0)), 2) * 1.4)
    axes.set_xlim(0.2, len(order) + 0.8)
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("classes by frequency (legend: classes of a group, and their share of the counts)")
    axes.set_ylabel("images (logarithmic)")


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


def _write_cells(axes: Axes, shown: np.ma.MaskedArray) -> None:
    for (row, column), value in np.ndenumerate(shown.filled(0)):
        if value > 0:
            text = "1" if value == 1 else f"{value:.2f}".lstrip("0") if value >= 0.005 else "<.01"
            color = "#ffffff" if value > 0.3 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _label(name: str) -> str:
    """A class name as it can stand at an axis: one short line that is no formula."""
    name = " ".join(name.split())
    name = name if len(name) <= 26 else name[:25] + "…"
    return name.replace("$", r"\$")
