#!/usr/bin/env python3
"""Train and evaluate the rows of a table over several seeds, and compare them, paired by seed.

The table is a YAML file::

    title: Losses under missing leaves
    config: shapes/faster_rcnn_tiny_softmax_shapes.yaml   # of all rows: a path, or a name of the model zoo
    overrides: {SOLVER.MAX_ITER: 1000}                    # of all rows; keys of the config
    seeds: [1, 2, 3, 4, 5]
    baseline: softmax                                     # the row that differences are taken to
    metrics: {mAP50: all classes, mAP50_leaves: leaves}   # name in results.json's "summary": heading
    data:
      shapes:                     # made once by commands
        commands: ["longtail-det2 shapes --output {data}/shapes --seed {seed} --stores"]
      birds:                      # or there already: the folder for DATASETS.ROOT
        folder: datasets
        overrides: {DATASETS.TRAIN: [birds_train], DATASETS.TEST: [birds_val]}
    rows:
      softmax: {label: softmax cross-entropy}
      concurrent:
        label: concurrent softmax
        config: ...               # default: the one above
        overrides: {MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS: ConcurrentSoftmaxLoss}
        data: [shapes]            # default: all
      concurrent@plain:           # a further evaluation
        weights: concurrent       # of this row, whose config, overrides and data are its own
        label: concurrent, softmax in test
        overrides: {MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TEST: softmax}

"{data}" in commands and overrides is the data set's folder, "{seed}" the seed; commands with "{seed}" make
one data set per seed. Below --output: results.csv (one row per run), table.md, differences.png, data/, and
runs/ with the log of each run. What is finished is not run again unless its settings have changed; an
interrupted training goes on from its last checkpoint.

Examples:
    python scripts/ablate.py projects/Seesaw/ablations/loss.yaml --jobs 2
    python scripts/ablate.py table.yaml --jobs 16 --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=600
"""

# pandas without stubs: each expression is Series or DataFrame or array.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy import stats

from longtail_det2.config_files import load_cfg
from longtail_det2.utils.console import tell_error
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import write_json

COMMAND = [sys.executable, "-m", "longtail_det2.cli"]
LEGEND = """In percent: mean ± standard deviation over n seeds; then the mean difference to {} over the seeds
that both lines have, with its 95 % interval (Student's t), bold where the interval excludes 0; of many cells
one in twenty does so by chance."""


@dataclass
class Row:
    """One training per data set and seed, or a further evaluation of one's weights."""

    label: str = MISSING
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data: list[str] | None = None
    weights: str | None = None


@dataclass
class Data:
    """A data set: the commands that make it, or the folder where it is."""

    commands: list[str] = field(default_factory=list)
    folder: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """The content of the YAML file."""

    title: str = MISSING
    config: str = MISSING
    baseline: str = MISSING
    seeds: list[int] = MISSING
    metrics: dict[str, str] = MISSING
    rows: dict[str, Row] = MISSING
    data: dict[str, Data] = MISSING
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One call of `longtail-det2 train` for a row of the table.

    Attributes:
        folder: holds log.txt, result.json and run/; its name has a digest of what decides about the result.
    """

    data: str
    row: str
    seed: int
    folder: Path
    command: list[str]

    def result(self) -> dict[str, Any] | None:
        """Metrics of the step, None if it is not finished."""
        file = self.folder / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_table(path: Path) -> Table:
    """Read and check a YAML file.

    Raises:
        ConfigError: it cannot be read, or a key is unknown, missing, or of the wrong type.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(path))
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {str(error).strip()}".replace("\n", "; ")) from None
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(f"{path}: {missing[0]} is missing")
    table = OmegaConf.to_object(merged)
    assert isinstance(table, Table)
    _check_name(f"{path}: baseline", table.baseline, table.rows)
    trainings = [name for name, row in table.rows.items() if row.weights is None]
    for name, row in table.rows.items():
        _check_name(f"{path}: rows.{name}.weights", row.weights or trainings[0], trainings)
        if row.weights and (row.config or row.data):
            raise ConfigError(f"{path}: rows.{name} has weights, so config and data are those of their row")
        for data in row.data or ():
            _check_name(f"{path}: rows.{name}.data", data, table.data)
    for name, data in table.data.items():
        if bool(data.commands) == bool(data.folder):
            raise ConfigError(f"{path}: data.{name} needs either commands or a folder")
    return table


def _check_name(key: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"{key}: there is no {name!r}, only {', '.join(known)}")


def make_trainings(
    table: Table, output: Path, seeds: Sequence[int], only: Sequence[str] = ()
) -> list[list[Step]]:
    """The steps of each training: itself and the evaluations of its weights.

    Raises:
        ConfigError: there is no such row or config, or an override does not fit the config.
    """
    for name in only:
        _check_name("--only", name, table.rows)
    return [
        [
            make_step(table, output, data, seed, one)
            for one in (name, *(key for key, other in table.rows.items() if other.weights == name))
        ]
        for seed in seeds
        for data in table.data
        for name, row in table.rows.items()
        if row.weights is None and data in (row.data or table.data) and name in (only or table.rows)
    ]


def make_step(table: Table, output: Path, data: str, seed: int, name: str) -> Step:
    """The training or evaluation of a row."""
    row, folder = table.rows[name], data_folder(table, output, data, seed)
    parts, places = [row.overrides], {"DATASETS.ROOT": folder, "SEED": seed}
    config, mode = row.config, "--resume"
    if row.weights is not None:
        training, mode = table.rows[row.weights], "--eval-only"
        parts, config = [training.overrides, row.overrides], training.config
        run = make_step(table, output, data, seed, row.weights).folder / "run"
        places["MODEL.WEIGHTS"] = run / "model_final.pth"
    config = config or table.config
    overrides = {}
    for part in (table.overrides, table.data[data].overrides, *parts):
        overrides |= _flat(part)
    settings = f"{_effective(config, tuple(_words(overrides)))}\n{table.data[data].commands}"
    own = output / "runs" / data / name / f"seed{seed}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    places["OUTPUT_DIR"] = own / "run"
    words = [_fill(word, folder, seed) for word in _words(overrides | places)]
    return Step(data, name, seed, own, [*COMMAND, "train", "--config-file", config, mode, *words])


@cache
def _effective(config: str, words: tuple[str, ...]) -> str:
    """The config of a training as text; read once for all seeds."""
    return load_cfg(config, list(words)).dump()


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _words(overrides: Mapping[str, Any]) -> list[str]:
    return [word for key, value in overrides.items() for word in (key, str(value))]


def _fill(text: str, data: Path, seed: int) -> str:
    return text.replace("{data}", str(data)).replace("{seed}", str(seed))


def data_folder(table: Table, output: Path, name: str, seed: int) -> Path:
    """The folder "{data}" of a data set."""
    data = table.data[name]
    if data.folder is not None:
        return Path(data.folder).absolute()
    per_seed = any("{seed}" in command for command in data.commands)
    return output / "data" / (f"{name}-seed{seed}" if per_seed else name)


def make_data(table: Table, output: Path, name: str, seed: int) -> None:
    """Run the commands of a data set, unless they were run before.

    Raises:
        DataError: one failed.
    """
    folder = data_folder(table, output, name, seed)
    commands = [[_fill(word, folder, seed) for word in shlex.split(one)] for one in table.data[name].commands]
    text, done = "\n".join(map(shlex.join, commands)), folder / "commands.txt"
    if not commands or (done.is_file() and done.read_text(encoding="utf-8") == text):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for words in commands:
        command = shlex.join(words)
        print(command, flush=True)
        words = [*COMMAND, *words[1:]] if words[0] == "longtail-det2" else words
        try:
            ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            raise DataError(f"data {name}: {command}: {error.strerror}") from None
        if ended.returncode:
            raise DataError(f"data {name}: {command}: {_last_line(ended.stdout)}")
    done.write_text(text, encoding="utf-8")


def run_steps(steps: Sequence[Step]) -> str:
    """Run what is not finished of a training and its evaluations; return what went wrong, or ""."""
    reason = ""
    for step in steps:
        reason = reason or _run_step(step)
    print(f"{steps[0].data}/{steps[0].row}/seed{steps[0].seed}: {reason or 'done'}", flush=True)
    return reason


def _run_step(step: Step) -> str:
    step.folder.mkdir(parents=True, exist_ok=True)
    run, log = step.folder / "run", step.folder / "log.txt"
    with (step.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"another process works in {step.folder}"
        if step.result() is not None:
            return ""
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        with log.open("ab") as out:
            # The child inherits the lock, which lasts as long as either process.
            keep = [lock.fileno()]
            done = subprocess.run(step.command, stdout=out, stderr=out, env=environment, pass_fds=keep)
        if done.returncode:
            return f"{_last_line(log.read_text(encoding='utf-8', errors='replace'))} ({log})"
        metrics = read_summary(run)
        if not metrics:
            return f"no inference/*/results.json with a summary in {run}"
        write_json(step.folder / "result.json", metrics)
        for checkpoint in run.glob("model_[0-9]*.pth"):
            checkpoint.unlink()
    return ""


def _last_line(text: str) -> str:
    return (text.strip() or "no output").splitlines()[-1][:300]


def read_summary(run: Path) -> dict[str, float | None]:
    """Metrics of a run in percent, such as "mAP50" or "lvis_bbox/AP", data set first if there are several."""
    files = sorted(run.glob("inference/*/results.json"))
    found: dict[str, float | None] = {}
    for path in files:
        prefix = f"{path.parent.name}/" if len(files) > 1 else ""
        for task, values in json.loads(path.read_text(encoding="utf-8")).get("summary", {}).items():
            for name, value in values.items():
                key = prefix + (name if task == "bbox" else f"{task}/{name}")
                found[key] = None if value is None else 100 * value
    return found


def run_all(trainings: Sequence[list[Step]], args: argparse.Namespace, output: Path) -> bool:
    """Run the trainings, --jobs at once, here or on a Slurm cluster; return whether all succeeded."""
    if args.slurm is None:
        with ThreadPoolExecutor(args.jobs) as threads:
            return not any(list(threads.map(run_steps, trainings)))
    import submitit

    pool = submitit.AutoExecutor(output / "submitit", cluster=args.cluster)
    given = dict(word.split("=", 1) for word in args.slurm)
    values = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    pool.update_parameters(slurm_array_parallelism=args.jobs, **values)
    reasons = [job.result() for job in pool.map_array(run_steps, trainings)]
    return not any(reasons)


def collect(table: Table, trainings: Sequence[list[Step]]) -> pd.DataFrame:
    """The finished steps with a column per metric.

    Raises:
        ConfigError: the evaluations do not have a metric of the table.
    """
    steps = [(step, metrics) for one in trainings for step in one if (metrics := step.result()) is not None]
    frame = pd.DataFrame([{"data": s.data, "line": s.row, "seed": s.seed, **found} for s, found in steps])
    for name in table.metrics if len(frame) else ():
        _check_name("metrics", name, list(frame.columns[3:]))
    return frame


def compare(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each data set, metric and row, and its difference to the baseline, paired by seed.

    "half" is half of the 95 % interval of the difference by Student's t, NaN for fewer than two pairs.
    """
    keys = ["data", "metric", "seed"]
    long = frame.melt(["data", "line", "seed"], list(table.metrics), "metric").astype({"value": float})
    base = long[long["line"] == table.baseline].set_index(keys)["value"]
    long["change"] = long["value"] - long.join(base, on=keys, rsuffix="_base")["value_base"]
    values = {"n": ("value", "count"), "mean": ("value", "mean"), "sd": ("value", "std")}
    changes = {"pairs": ("change", "count"), "diff": ("change", "mean"), "half": ("change", "sem")}
    cells = long.groupby(["data", "metric", "line"], sort=False).agg(**values, **changes).reset_index()
    cells["half"] *= stats.t.ppf(0.975, (cells["pairs"] - 1).clip(lower=1))
    return cells[cells["n"] > 0]


def markdown(table: Table, compared: pd.DataFrame) -> str:
    """A table per data set, with the legend."""
    labels = {name: row.label.replace("|", "\\|") for name, row in table.rows.items()}
    parts = [f"# {table.title}"]
    for data, own in compared.groupby("data", sort=False):
        cells = own.assign(text=own.apply(_cell, axis=1)).pivot(index="line", columns="metric", values="text")
        lines = [line for line in labels if line in cells.index]
        cells = cells.reindex(index=lines, columns=list(table.metrics)).rename_axis(index=None)
        cells.insert(0, "n", own.groupby("line")["n"].max())
        cells = cells.rename(index=labels, columns=table.metrics)
        parts += [f"## {data}", cells.to_markdown(disable_numparse=True)]
    return "\n\n".join([*parts, LEGEND.format(table.rows[table.baseline].label)]) + "\n"


def _cell(cell: pd.Series) -> str:
    text = f"{cell['mean']:.1f} ± {cell['sd']:.1f}" if cell["n"] > 1 else f"{cell['mean']:.1f}"
    if cell["half"] > 0:
        low, high = cell["diff"] - cell["half"], cell["diff"] + cell["half"]
        change = f"{cell['diff']:+.1f} [{low:+.1f}, {high:+.1f}]"
        text += f"; **{change}**" if low * high > 0 else f"; {change}"
    return text


def draw(table: Table, compared: pd.DataFrame, path: Path) -> None:
    """Draw the differences with their intervals: a panel per metric, a colour per data set."""
    others = compared[compared["line"] != table.baseline]
    lines = [line for line in table.rows if line in set(others["line"])]
    if not lines:
        return
    figure = Figure((2.5 + 2.2 * len(table.metrics), 1.2 + 0.32 * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)[0]
    for axes, (metric, title) in zip(panels, table.metrics.items(), strict=True):
        axes.axvline(0, color="0.6", linewidth=1)
        shown = others[others["metric"] == metric]
        for place, (data, own) in enumerate(shown.groupby("data", sort=False)):
            y = own["line"].map(lines.index) + 0.2 * place
            axes.errorbar(own["diff"], y, xerr=own["half"], fmt="o", markersize=4, capsize=2, label=data)
        axes.set(title=title, yticks=range(len(lines)), yticklabels=[table.rows[one].label for one in lines])
    panels[0].invert_yaxis()
    if others["data"].nunique() > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=6, frameon=False)
    figure.supxlabel(f"difference to {table.rows[table.baseline].label}, percentage points, 95 % interval")
    figure.savefig(path, dpi=160)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("table", type=Path, metavar="TABLE.yaml", help="what to train and compare")
    add("--output", type=Path, metavar="DIR", help="default: output/ablations/<project>/<name of the file>")
    add("--jobs", type=int, default=1, metavar="N", help="trainings at once (default: 1)")
    add("--only", nargs="+", default=[], metavar="ROW", help="these rows alone")
    add("--seeds", nargs="+", type=int, metavar="N", help="instead of those of the file")
    add("--report", action="store_true", help="run nothing; write the table of what is finished")
    add("--slurm", nargs="*", metavar="KEY=VALUE", help="as a Slurm job array, with submitit's parameters")
    add("--cluster", default="slurm", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 if a training failed; 2 for an error in the input."""
    args = build_parser().parse_args(arguments)
    try:
        return run(args)
    except (ConfigError, DataError) as error:
        return tell_error(error)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; see :func:`main`."""
    table = load_table(args.table)
    project = args.table.resolve().parents[1].name
    output = (args.output or Path("output/ablations") / project / args.table.stem).absolute()
    trainings = make_trainings(table, output, args.seeds or table.seeds, args.only)
    waiting = [one for one in trainings if any(step.result() is None for step in one)]
    waiting = [] if args.report else waiting
    for data, seed in sorted({(one[0].data, one[0].seed) for one in waiting}):
        make_data(table, output, data, seed)
    succeeded = run_all(waiting, args, output)
    frame = collect(table, make_trainings(table, output, sorted({*table.seeds, *(args.seeds or [])})))
    if len(frame):
        compared = compare(table, frame)
        text = markdown(table, compared)
        frame.round(4).to_csv(output / "results.csv", index=False)
        (output / "table.md").write_text(text, encoding="utf-8")
        draw(table, compared, output / "differences.png")
        print(f"\n{text}\nwritten to {output}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
