"""What the pictures of tables have in common: colours, text, legends, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, MUTED, GRID = "#15181d", "#525b68", "#d5dae1"  # as in the HTML report on light pages
COLORS = ("#0068a8", "#b06f00", "#bb2a6b", "#16836a", "#7351b5", "#6b7482")
MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 160
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_legend(figure: Figure, entries: Sequence[tuple[str, int]]) -> None:
    """A line of (name, place in COLORS and MARKERS) above the panels."""
    handles = [
        Line2D(
            [],
            [],
            color=COLORS[place % len(COLORS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle="none",
        )
        for _, place in entries
    ]
    names = [name for name, _ in entries]
    figure.legend(handles, names, loc="outside upper left", ncols=6, handletextpad=0.2, columnspacing=1.4)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches; draw and save it inside the block."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def save_picture(figure: Figure | None, path: Path) -> list[Path]:
    """Writes a picture that appears under its name only when it is complete; without one, removes the old."""
    if figure is None:
        path.unlink(missing_ok=True)
        return []
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    temporary.replace(path)
    return [path]
