"""The look of all plots: one palette, one Matplotlib style, files that are written atomically."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_path

INK, MUTED, GRID = "#15181d", "#525b68", "#dfe3e8"
COLORS = ("#0068a8", "#b06f00", "#bb2a6b", "#16836a", "#7351b5", "#6b7482")
"""Of series; the first three are those of head, medium and tail (frequent, common and rare)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handletextpad": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "longtail_det2",
}
"""Settings for `matplotlib.rc_context`."""


@contextmanager
def plot_figure(width: float, height: float, path: Path | None = None) -> Iterator[Figure]:
    """Give a figure in this style, to be drawn inside the block.

    Args:
        width: in inches.
        height: in inches.
        path: .png or .svg file to save when the block ends; equal figures give equal files.

    Raises:
        DataError: the file cannot be written.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if path is None:
            return
        metadata = {"Date": None} if path.suffix == ".svg" else None
        try:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror})") from None


def log_scale(axes: Axes, which: str, *, counts: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers.

    Args:
        axes: of a plot whose data are drawn.
        which: "x" or "y".
        counts: the data are counts: where one is 0, the axis begins there and is linear below 1.
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


def duration(seconds: float) -> str:
    """Seconds as "1.2 s", "12 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
