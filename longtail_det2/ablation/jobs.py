"""The trainings and evaluations that a specification comes down to."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail_det2 import shapes
from longtail_det2.utils.errors import ConfigError

from .configs import ConfigFacts, read_config, to_words
from .specification import DataSpec, Overrides, Row, Specification, Variant

FINAL_WEIGHTS = "model_final.pth"


@dataclass(frozen=True)
class Job:
    """One training, or one evaluation of a training's weights.

    Attributes:
        data: name of the data set.
        line: of the table: "row", or "row@variant" for an evaluation.
        seed: of the training.
        data_seed: of the generated data; None for data that are there.
        config: the config file.
        overrides: of the config; "{data}" is not filled in yet.
        iterations: length of the training.
        needs: place of the job whose weights this one starts from.
        hash: changes with whatever decides about the result.
    """

    data: str
    line: str
    seed: int
    data_seed: int | None
    config: Path
    overrides: Overrides
    iterations: int
    needs: str | None
    hash: str

    @property
    def is_evaluation(self) -> bool:
        """Whether the job evaluates the weights of another."""
        return "@" in self.line

    @property
    def place(self) -> str:
        """Folder below `runs/` of the output, and the name of the job in messages."""
        return f"{self.data}/{self.line}/seed{self.seed}"

    def options(self, root: Path, data: Path, run: Path, weights: Path | None) -> list[str]:
        """The config options of the job's command line.

        Args:
            root: folder for DATASETS.ROOT.
            data: folder for "{data}".
            run: folder for OUTPUT_DIR.
            weights: that the job starts from.
        """
        lazy = self.config.suffix == ".py"
        keys = _LAZY_KEYS if lazy else _KEYS
        values = {key: _filled(value, {"data": data}) for key, value in self.overrides.items()}
        values.update({keys["root"]: str(root), keys["output"]: str(run), keys["seed"]: self.seed})
        if weights is not None:
            values[keys["weights"]] = str(weights)
        return to_words(values, lazy)


_KEYS = {"root": "DATASETS.ROOT", "output": "OUTPUT_DIR", "seed": "SEED", "weights": "MODEL.WEIGHTS"}
_LAZY_KEYS = {
    "root": "datasets.root",
    "output": "train.output_dir",
    "seed": "train.seed",
    "weights": "train.init_checkpoint",
}


def expand(specification: Specification, seeds: Sequence[int] = (), only: Collection[str] = ()) -> list[Job]:
    """All jobs, each after the one that it needs; one seed after the other, so that tables fill evenly.

    Args:
        specification: the table.
        seeds: instead of the specification's.
        only: names of rows; empty for all. Rows that these start from come along.

    Raises:
        ConfigError: a row does not exist, or its config or an override is wrong.
    """
    names = _with_starts(specification, only)
    jobs: dict[str, Job] = {}
    for seed in seeds or specification.seeds:
        for data in specification.data.values():
            for row in specification.rows:
                if row.name in names and data.name in row.data:
                    _add(jobs, row, data, seed)
    return list(jobs.values())


def _with_starts(specification: Specification, only: Collection[str]) -> set[str]:
    rows = {row.name: row for row in specification.rows}
    for name in only:
        if name not in rows:
            near = difflib.get_close_matches(name, rows, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{specification.path}: there is no row {name!r}.{hint} Rows: {', '.join(rows)}"
            )
    chosen: set[str] = set()
    waiting = list(only or rows)
    while waiting:
        row = rows[waiting.pop()]
        chosen.add(row.name)
        if row.start_from is not None:
            waiting.append(row.start_from)
    return chosen


def _add(jobs: dict[str, Job], row: Row, data: DataSpec, seed: int) -> None:
    """Adds a row's training and its evaluations."""
    start = None if row.start_from is None else jobs[f"{data.name}/{row.start_from}/seed{seed}"]
    train = _job(row, None, data, seed, start)
    jobs[train.place] = train
    for variant in row.evaluate:
        job = _job(row, variant, data, seed, train)
        jobs[job.place] = job


def _job(row: Row, variant: Variant | None, data: DataSpec, seed: int, needs: Job | None) -> Job:
    overrides = {**row.overrides, **(variant.overrides if variant else {})}
    overrides = {key: _filled(value, {"seed": seed}) for key, value in overrides.items()}
    place = row.place + (f".evaluate ({variant.name})" if variant else "")
    facts = _facts(row.config, overrides, place)
    content = {
        "kind": "evaluate" if variant else "train",
        "data": _content(data, seed),
        "config": facts.settings,
        "seed": seed,
        "needs": needs and needs.hash,
    }
    return Job(
        data=data.name,
        line=f"{row.name}@{variant.name}" if variant else row.name,
        seed=seed,
        data_seed=data.seed(seed),
        config=row.config,
        overrides=overrides,
        iterations=0 if variant else facts.iterations,
        needs=needs and needs.place,
        hash=hash_of(content),
    )


def _facts(config: Path, overrides: Overrides, place: str) -> ConfigFacts:
    try:
        return read_config(config, overrides)
    except ConfigError as error:
        raise ConfigError(f"{place}: {str(error).replace(' (command line)', '')}") from None


def _content(data: DataSpec, seed: int) -> dict[str, Any]:
    """What a data set is made of."""
    if data.options is None:
        return {"folder": str(data.folder), "prepare": data.prepare}
    options = dataclasses.replace(data.options, seed=data.seed(seed))
    return {"generator": shapes.VERSION, "options": options.to_json(), "prepare": data.prepare}


def hash_of(content: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _filled(value: Any, names: Mapping[str, object]) -> Any:
    """The value of an override with its placeholders filled in."""
    if isinstance(value, list):
        return [_filled(one, names) for one in value]
    if isinstance(value, dict):  # in a list; others are written out as keys of their own
        return {key: _filled(one, names) for key, one in value.items()}
    return fill(value, names) if isinstance(value, str) else value


def fill(text: str, names: Mapping[str, object]) -> str:
    """The text with "{name}" replaced for each of `names`."""
    for name, value in names.items():
        text = text.replace("{" + name + "}", str(value))
    return text
