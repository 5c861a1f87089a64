#!/usr/bin/env python3
"""Train and evaluate the rows of a table over several seeds, and compare them, paired by seed.

The table is a YAML file::

    title: Losses under missing leaves
    config: shapes/faster_rcnn_tiny_softmax_shapes.yaml   # of all rows: a path, or a name of the model zoo
    overrides: {SOLVER.MAX_ITER: 1000}                    # of all rows; keys of the config
    seeds: [1, 2, 3, 4, 5]
    baseline: softmax                                     # the line that differences are taken to
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
        evaluate:                 # the same weights with other options: the line "concurrent@plain"
          plain: {label: "concurrent, softmax in test", overrides: {...}}

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
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from detectron2.config import LazyConfig
from matplotlib.figure import Figure
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy import stats

from longtail_det2.config_files import load_cfg, load_lazy
from longtail_det2.utils.console import tell_error
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import write_json

COMMAND = [sys.executable, "-m", "longtail_det2.cli"]
YAML_KEYS = ("DATASETS.ROOT", "OUTPUT_DIR", "SEED", "MODEL.WEIGHTS")
LAZY_KEYS = ("datasets.root", "train.output_dir", "train.seed", "train.init_checkpoint")
LEGEND = """In percent: mean ± standard deviation over n seeds, and the mean difference over the seeds that
both lines have, with its 95 % interval (Student's t), bold where the interval excludes 0; of many cells
one in twenty does so by chance."""


@dataclass
class Evaluation:
    """A further evaluation of a row's weights."""

    label: str = MISSING
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One training per data set and seed."""

    label: str = MISSING
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data: list[str] | None = None
    evaluate: dict[str, Evaluation] = field(default_factory=dict)


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

    def labels(self) -> dict[str, str]:
        """The label of each line: "row", or "row@evaluation"."""
        lines = {}
        for name, row in self.rows.items():
            lines[name] = row.label
            lines |= {f"{name}@{key}": one.label for key, one in row.evaluate.items()}
        return lines


@dataclass(frozen=True)
class Step:
    """One call of a train script for a line of the table.

    Attributes:
        folder: holds log.txt, result.json and run/.
        settings: text that changes with whatever decides about the result.
    """

    data: str
    line: str
    seed: int
    folder: Path
    command: list[str]
    settings: str

    def result(self) -> dict[str, Any] | None:
        """Metrics of the finished step; None if it is not finished, or was run with other settings."""
        try:
            content = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content["metrics"] if content["settings"] == self.settings else None


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
    _check_name(f"{path}: baseline", table.baseline, table.labels())
    for name, row in table.rows.items():
        for data in row.data or ():
            _check_name(f"{path}: rows.{name}.data", data, table.data)
    return table


def _check_name(key: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ConfigError(f"{key}: there is no {name!r}, only {', '.join(known)}")


def make_steps(
    table: Table, output: Path, seeds: Sequence[int], only: Sequence[str] = ()
) -> list[list[Step]]:
    """The steps of each training: itself and the evaluations of its weights.

    Raises:
        ConfigError: there is no such row or config, or an override does not fit the config.
    """
    for name in only:
        _check_name("--only", name, table.rows)
    return [
        list(_steps_of(table, output, seed, data, name))
        for seed in seeds
        for data in table.data
        for name, row in table.rows.items()
        if (row.data is None or data in row.data) and (not only or name in only)
    ]


@cache
def _effective(config: str, words: tuple[str, ...]) -> str:
    """The config that a train script gets, as text; read once for all seeds."""
    if config.endswith(".py"):
        return LazyConfig.to_py(load_lazy(config, list(words)))
    return load_cfg(config, list(words)).dump()


def _steps_of(table: Table, output: Path, seed: int, data: str, name: str) -> Iterator[Step]:
    row = table.rows[name]
    config = row.config or table.config
    lazy = config.endswith(".py")
    root, output_dir, seed_key, weights = LAZY_KEYS if lazy else YAML_KEYS
    base = _flat(table.overrides) | _flat(table.data[data].overrides) | _flat(row.overrides)
    lines = {name: {}} | {f"{name}@{key}": _flat(one.overrides) for key, one in row.evaluate.items()}
    for line, further in lines.items():
        words = _words(base | further, lazy)
        effective = _effective(config, tuple(words))
        run = output / "runs" / data / line / f"seed{seed}" / "run"
        places = {root: "{data}", output_dir: str(run), seed_key: seed}
        if line != name:
            places[weights] = str(output / "runs" / data / name / f"seed{seed}" / "run" / "model_final.pth")
        mode = "--resume" if line == name else "--eval-only"
        folder = data_folder(table, output, data, seed)
        words = [_fill(word, folder, seed) for word in words + _words(places, lazy)]
        settings = f"{effective}\n{table.data[data].commands}"
        command = [*COMMAND, "train", "--config-file", config, mode, *words]
        yield Step(data, line, seed, run.parent, command, settings)


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _words(overrides: Mapping[str, Any], lazy: bool) -> list[str]:
    """Overrides on a command line: Hydra's grammar for lazy configs, Python literals for YAML ones."""
    if lazy:
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
    pairs = ((key, value if isinstance(value, str) else repr(value)) for key, value in overrides.items())
    return [word for pair in pairs for word in pair]


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
    commands = [[_fill(w, folder, seed) for w in shlex.split(one)] for one in table.data[name].commands]
    text = "\n".join(map(shlex.join, commands))
    done = output / "data" / f"{folder.name}.done"
    if not commands or (done.is_file() and done.read_text(encoding="utf-8") == text):
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    if table.data[name].folder is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
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


def run_steps(steps: Sequence[Step], threads: int = 1) -> str:
    """Run what is not finished of a training and its evaluations; return what went wrong, or ""."""
    reason = ""
    for step in steps:
        reason = reason or _run_step(step, threads)
    print(f"{steps[0].data}/{steps[0].line}/seed{steps[0].seed}: {reason or 'done'}", flush=True)
    return reason


def _run_step(step: Step, threads: int) -> str:
    step.folder.mkdir(parents=True, exist_ok=True)
    run, begun, log = step.folder / "run", step.folder / "settings.txt", step.folder / "log.txt"
    with (step.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"another process works in {step.folder}"
        if step.result() is not None:
            return ""
        if not begun.is_file() or begun.read_text(encoding="utf-8") != step.settings:
            shutil.rmtree(run, ignore_errors=True)
            begun.write_text(step.settings, encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as out:
            # The child inherits the lock, which lasts as long as either process.
            keep = [lock.fileno()]
            done = subprocess.run(step.command, stdout=out, stderr=out, env=environment, pass_fds=keep)
        if done.returncode:
            return f"{_last_line(log.read_text(encoding='utf-8', errors='replace'))} ({log})"
        metrics = read_summary(run)
        if not metrics:
            return f"no inference/*/results.json with a summary in {run}"
        write_json(step.folder / "result.json", {"settings": step.settings, "metrics": metrics})
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
    work = partial(run_steps, threads=args.threads)
    if args.slurm is not None:
        import submitit

        pool = submitit.AutoExecutor(output / "submitit", cluster=args.cluster)
        given = dict(word.split("=", 1) for word in args.slurm)
        values = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
        pool.update_parameters(slurm_array_parallelism=args.jobs, cpus_per_task=args.threads, **values)
        reasons = [job.result() for job in pool.map_array(work, trainings)]
    else:
        with ThreadPoolExecutor(args.jobs) as threads:
            reasons = list(threads.map(work, trainings))
    return not any(reasons)


def collect(table: Table, trainings: Sequence[list[Step]]) -> pd.DataFrame:
    """The finished steps with a column per metric.

    Raises:
        ConfigError: the evaluations do not have a metric of the table.
    """
    steps = [(step, metrics) for one in trainings for step in one if (metrics := step.result()) is not None]
    frame = pd.DataFrame(
        [{"data": s.data, "line": s.line, "seed": s.seed, **metrics} for s, metrics in steps]
    )
    for name in table.metrics if len(frame) else ():
        _check_name("metrics", name, dict.fromkeys(frame.columns[3:]))
    return frame


def compare(table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each data set, line and metric, and its difference to the baseline, paired by seed.

    Returns:
        Columns data, line, metric, n, mean, sd, and of the differences pairs, diff and half: half of the
        95 % interval by Student's t, NaN for fewer than two pairs.
    """
    rows = []
    for (data, metric), own in frame.melt(["data", "line", "seed"], list(table.metrics)).groupby(
        ["data", "variable"], sort=False
    ):
        values = own.pivot(index="seed", columns="line", values="value").astype(float)
        values = values.reindex(columns=list(table.labels()))
        diff = values.sub(values[table.baseline], axis=0)
        pairs = diff.count()
        half = diff.sem() * stats.t.ppf(0.975, (pairs - 1).clip(lower=1))
        columns = {"n": values.count(), "mean": values.mean(), "sd": values.std()}
        columns |= {"pairs": pairs, "diff": diff.mean(), "half": half}
        rows.append(pd.DataFrame(columns).query("n > 0").assign(data=data, metric=metric).reset_index())
    return pd.concat(rows)


def markdown(table: Table, compared: pd.DataFrame) -> str:
    """Two tables per data set: means, and differences to the baseline."""
    labels, parts = table.labels(), [f"# {table.title}"]
    cells = compared.assign(value=compared.apply(_mean, axis=1), change=compared.apply(_difference, axis=1))
    for data, own in cells.groupby("data", sort=False):
        parts += [f"## {data}", _grid(table, own, "n", "value")]
        if len(others := own[own["line"] != table.baseline]):
            parts += [f"Difference to {labels[table.baseline]}:", _grid(table, others, "pairs", "change")]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _mean(cell: pd.Series) -> str:
    return f"{cell['mean']:.1f}" + (f" ± {cell['sd']:.1f}" if cell["n"] > 1 else "")


def _difference(cell: pd.Series) -> str:
    if cell["pairs"] < 2:
        return f"{cell['diff']:+.1f}" if cell["pairs"] else "–"
    low, high = cell["diff"] - cell["half"], cell["diff"] + cell["half"]
    text = f"{cell['diff']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low * high > 0 else text


def _grid(table: Table, cells: pd.DataFrame, count: str, values: str) -> str:
    grid = cells.pivot(index="line", columns="metric", values=values)
    grid = grid.reindex([line for line in table.labels() if line in grid.index])[list(table.metrics)]
    grid.insert(0, "n", cells.groupby("line")[count].max())
    labels = {line: label.replace("|", "\\|") for line, label in table.labels().items()}
    grid = grid.rename(index=labels, columns=table.metrics).rename_axis(index=None)
    return grid.to_markdown(disable_numparse=True, colalign=["left"] + ["right"] * len(grid.columns))


def draw(table: Table, compared: pd.DataFrame, path: Path) -> None:
    """Draw the differences with their intervals: a panel per metric, a colour per data set."""
    others = compared[compared["line"] != table.baseline]
    lines = [line for line in table.labels() if line in set(others["line"])]
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
        axes.set(title=title, yticks=range(len(lines)), yticklabels=[table.labels()[one] for one in lines])
    panels[0].invert_yaxis()
    if others["data"].nunique() > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=6, frameon=False)
    figure.supxlabel(f"difference to {table.labels()[table.baseline]}, percentage points, 95 % interval")
    figure.savefig(path, dpi=160)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("table", type=Path, metavar="TABLE.yaml", help="what to train and compare")
    add("--output", type=Path, metavar="DIR", help="default: output/ablations/<project>/<name of the file>")
    add("--jobs", type=int, default=1, metavar="N", help="trainings at once (default: 1)")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads per training (default: 1)")
    add("--only", default="", metavar="ROW,...", help="these rows alone")
    add("--seeds", default="", metavar="N,...", help="instead of those of the file")
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
    seeds = [int(word) for word in args.seeds.split(",") if word] or table.seeds
    trainings = make_steps(table, output, seeds, [word for word in args.only.split(",") if word])
    waiting = [one for one in trainings if any(step.result() is None for step in one)]
    waiting = [] if args.report else waiting
    for data, seed in sorted({(one[0].data, one[0].seed) for one in waiting}):
        make_data(table, output, data, seed)
    succeeded = run_all(waiting, args, output)
    frame = collect(table, make_steps(table, output, sorted({*table.seeds, *seeds})))
    if len(frame):
        compared = compare(table, frame)
        frame.round(4).to_csv(output / "results.csv", index=False)
        (output / "table.md").write_text(markdown(table, compared), encoding="utf-8")
        draw(table, compared, output / "differences.png")
        print(f"\n{markdown(table, compared)}\nwritten to {output}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
