"""Matplotlib figures as SVG text that takes its colours and fonts from the page around it.

Figures are drawn with placeholder colours; in the finished SVG they become CSS variables, so that one figure
is readable on light and on dark pages and in print. Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["COLORS", "SERIES", "new_figure", "style_axes", "to_svg"]

SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
"""Names of the colours for curves that belong to no frequency group."""

COLORS: dict[str, str] = {
    name: f"#0{number:x}0d0{number:x}"
    for number, name in enumerate(("ink", "muted", "grid", "head", "medium", "tail", "inner", *SERIES))
}
"""Placeholder colour by name; the page defines the CSS variable `--<name>` for each."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": COLORS["ink"],
    "axes.labelcolor": COLORS["muted"],
    "axes.edgecolor": COLORS["grid"],
    "axes.titlecolor": COLORS["ink"],
    "axes.titlesize": 10,
    "xtick.color": COLORS["grid"],
    "ytick.color": COLORS["grid"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches in the report's style; draw and convert it inside the block."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels and a quiet grid behind the data."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, which="major")
    axes.set_axisbelow(True)


def to_svg(
    figure: Figure, name: str, description: str, titles: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The figure as an `<svg>` element for inline use.

    Args:
        figure: drawn inside `new_figure`.
        name: unique within the page; keeps the ids of several figures apart.
        description: what the figure shows, for readers who do not see it.
        titles: {gid of a scatter: one hover text per point, in drawing order}.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    for gid, texts in (titles or {}).items():
        svg = _add_titles(svg, gid, texts)
    # Only ids that are referred to stay; the others would repeat from figure to figure.
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"; font-family: [^;\"]*|font-family: [^;\"]*; ", "", svg)
    for color, placeholder in COLORS.items():
        svg = svg.replace(placeholder, f"var(--{color})")
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg role="img" {box.group(0) if box else ""} aria-label="{escape(description)}">'
    body = re.sub(r"^<svg[^>]*>", "", svg, count=1)
    return re.sub(r"\n\s*", "\n", head + body).strip()


def _add_titles(svg: str, gid: str, texts: Sequence[str]) -> str:
    """Puts a hover text into each marker of a scatter; leaves the figure as it is if the numbers disagree."""
    start = svg.find(f'<g id="{gid}">')
    if start < 0:
        return svg
    end = svg.find('<g id="', start + 1)
    end = end if end >= 0 else len(svg)
    start = max(start, svg.rfind("</defs>", start, end))  # a marker's shape is no mark
    part = svg[start:end]
    mark = re.compile(
        r"<(use|path) ([^>]*)/>"
    )  # many marks refer to one shape, few are drawn each for itself
    if len(mark.findall(part)) != len(texts):
        return svg
    remaining = iter(texts)

    def with_title(found: re.Match[str]) -> str:
        return f"<{found[1]} {found[2]}><title>{escape(next(remaining))}</title></{found[1]}>"

    return svg[:start] + mark.sub(with_title, part) + svg[end:]
