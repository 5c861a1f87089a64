"""What an ablation consists of: the content of a YAML file, which :mod:`.parsing` reads.

::

    title: Losses under missing leaves        # heading of the table
    config: shapes/faster_rcnn_tiny_softmax_shapes.yaml   # of all rows: path (from here) or model-zoo name
    overrides: {SOLVER.MAX_ITER: 1500}        # of all rows
    seeds: [1, 2, 3]                          # of the training
    baseline: softmax                         # what differences are taken to (default: the first row)
    metrics: {mAP50_leaves: leaves, mAP50: all}   # name in the evaluation's summary: heading; or a list
    plot: {metrics: [mAP50_leaves], x_label: λ}   # optional; default: all metrics
    data:
      mild:                                   # options of scripts/generate_shapes.py, with underscores
        missing_leaf_rate: 0.1
        formats: [openimages]                 # [lvis]: for configs of shapes_lvis_{train,validation}
        seed: 0                               # a number, or "run": the seed of the run
        prepare:                              # scripts to run once on the finished data, optional
          - category_statistics.py --store {data}/stores/train --output {data}/statistics
      real: {folder: datasets}                # or data that are there: a folder for DATASETS.ROOT
    rows:
      - name: softmax
        label: softmax cross-entropy          # what the table calls it (default: the name)
        config: ...                           # default: the one above
        overrides: {KEY: VALUE}               # "{data}" and "{seed}" are replaced
        data: [mild]                          # default: all
        x: 0.5                                # place on the x axis of a sweep
        start_from: other_row                 # weights to start from: that row's, same data and seed
        hidden: true                          # not in table and plots (a row to start from)
        evaluate:                             # the same weights evaluated with other options
          - {name: test_only, label: ..., overrides: {KEY: VALUE}}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail_det2.shapes import ShapesOptions

Overrides = dict[str, Any]

SHAPES, SHAPES_LVIS = "shapes", "shapes_lvis"
"""Built-in data sets, and the folders below DATASETS.ROOT that hold their stores."""


@dataclass(frozen=True)
class DataSpec:
    """A data set of the table.

    Attributes:
        name: of the data set and its folder.
        options: what to generate; None for data that are there.
        seed_per_run: generate one data set for each seed of the training, with that seed.
        folder: what DATASETS.ROOT is set to for data that are there.
        prepare: command lines, each a script of `scripts/` with its arguments.
    """

    name: str
    options: ShapesOptions | None = None
    seed_per_run: bool = False
    folder: Path | None = None
    prepare: tuple[tuple[str, ...], ...] = ()

    @property
    def generated_name(self) -> str:
        """Folder of generated data below DATASETS.ROOT: that of the data set whose store is its `stores`."""
        lvis_only = self.options is not None and set(self.options.formats) == {"lvis"}
        return SHAPES_LVIS if lvis_only else SHAPES

    def seed(self, run_seed: int) -> int | None:
        """The seed that the data set of a run is generated with."""
        if self.options is None:
            return None
        return run_seed if self.seed_per_run else self.options.seed


@dataclass(frozen=True)
class Variant:
    """A further evaluation of a row's weights."""

    name: str
    label: str
    overrides: Overrides


@dataclass(frozen=True)
class Row:
    """A training, and what is evaluated of it; see the module."""

    name: str
    label: str
    config: Path
    overrides: Overrides
    data: tuple[str, ...]
    evaluate: tuple[Variant, ...] = ()
    start_from: str | None = None
    x: float | None = None
    hidden: bool = False
    place: str = ""

    @property
    def is_lazy(self) -> bool:
        """Whether the config is a Python file."""
        return self.config.suffix == ".py"

    def lines(self) -> list[tuple[str, str]]:
        """(name, label) of the table's lines: the row's own and those of its variants, as "row@variant"."""
        own = [(self.name, self.label)]
        return own + [(f"{self.name}@{one.name}", one.label) for one in self.evaluate]


@dataclass(frozen=True)
class Specification:
    """A whole table.

    Attributes:
        path: the file.
        title: heading.
        data: data sets by name.
        rows: in the order of the table.
        seeds: of the training.
        baseline: name of the line that differences are taken to.
        metrics: {name in the evaluation's summary: heading}.
        plot_metrics: those of them that are drawn.
        x_label: what the rows' `x` means.
    """

    path: Path
    title: str
    data: dict[str, DataSpec]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    baseline: str
    metrics: dict[str, str]
    plot_metrics: tuple[str, ...]
    x_label: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """(name, label) of all lines that are shown."""
        return [line for row in self.rows if not row.hidden for line in row.lines()]
