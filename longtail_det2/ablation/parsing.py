"""Reading a specification; whatever is wrong with it is an error that names the file and the key."""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from longtail_det2.config_names import find_config_file
from longtail_det2.shapes import ShapesOptions
from longtail_det2.utils.errors import ConfigError

from .specification import DataSpec, Overrides, Row, Specification, Variant
from .yaml_nodes import Node, read_yaml

PLACEHOLDERS = ("data", "seed")
"""What overrides and commands may contain in curly brackets."""

RUN_SEED = "run"
"""Seed of data that are generated for each seed of the training."""

MANAGED = {
    "OUTPUT_DIR": "a folder for each job",
    "SEED": "the key 'seeds'",
    "DATASETS.ROOT": "the key 'data'",
}
MANAGED_LAZY = {
    "train.output_dir": MANAGED["OUTPUT_DIR"],
    "train.seed": MANAGED["SEED"],
    "datasets.root": MANAGED["DATASETS.ROOT"],
}


def load_specification(path: str | Path, scripts: Path | None = None) -> Specification:
    """Reads and checks a specification.

    Args:
        path: the YAML file.
        scripts: folder of the scripts that `prepare` may name; None does not look for them.

    Raises:
        ConfigError: naming the file, the key, and what is wrong.
    """
    path = Path(path)
    root = read_yaml(path)
    known = ("title", "config", "overrides", "seeds", "baseline", "metrics", "plot", "data", "rows")
    top = root.mapping(known)
    for key in ("seeds", "metrics", "data", "rows"):
        if key not in top:
            root.fail(f"the key {key!r} is missing")
    data = {one.name: one for one in (_data(*item, scripts) for item in top["data"].mapping().items())}
    if not data:
        top["data"].fail("names no data set")
    metrics = _metrics(top["metrics"])
    rows = _rows(top["rows"], top, path.parent, tuple(data))
    plot = top["plot"].mapping(("metrics", "x_label")) if "plot" in top else {}
    shown = [name for row in rows if not row.hidden for name, _ in row.lines()]
    return Specification(
        path=path,
        title=top["title"].text() if "title" in top else path.stem,
        data=data,
        rows=rows,
        seeds=_seeds(top["seeds"]),
        baseline=_one_of(top["baseline"], shown) if "baseline" in top else shown[0],
        metrics=metrics,
        plot_metrics=_some_of(plot["metrics"], list(metrics)) if "metrics" in plot else tuple(metrics),
        x_label=plot["x_label"].text() if "x_label" in plot else "",
    )


def _seeds(node: Node) -> tuple[int, ...]:
    seeds = tuple(item.integer(0) for item in node.items())
    if not seeds or len(set(seeds)) < len(seeds):
        node.fail(f"must be different integers, at least one, got {list(seeds)}")
    return seeds


def _metrics(node: Node) -> dict[str, str]:
    if isinstance(node.value, list):
        names = [item.text() for item in node.items()]
        metrics = {name: name.partition("_")[2].replace("_", " ") or name for name in names}
    else:
        metrics = {name: item.text() for name, item in node.mapping().items()}
    if not metrics:
        node.fail("names no metric")
    return metrics


def _data(name: str, node: Node, scripts: Path | None) -> DataSpec:
    Node(name, node.file, f"{node.key} (the name)").name()
    if isinstance(node.value, dict) and "folder" in node.value:
        entries = node.mapping(("folder", "prepare"))
        folder = Path(entries["folder"].text())
        if not folder.is_dir():
            entries["folder"].fail(f"there is no folder {folder}")
        return DataSpec(name, folder=folder, prepare=_prepare(entries, scripts))
    defaults = ShapesOptions()
    fields = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
    entries = node.mapping((*fields, "prepare"))
    prepare = _prepare(entries, scripts)
    entries.pop("prepare", None)
    per_run = "seed" in entries and entries["seed"].value == RUN_SEED
    if per_run:
        entries.pop("seed")
    values = {key: _option(entry, fields[key]) for key, entry in entries.items()}
    options = ShapesOptions(**values)
    try:
        options.validate()
    except ConfigError as error:
        node.fail(str(error))
    return DataSpec(name, options, per_run, prepare=prepare)


def _option(node: Node, default: Any) -> Any:
    """A generator's option, of the type of its default."""
    if isinstance(default, bool):
        return node.flag()
    if isinstance(default, int):
        return node.integer(0)
    if isinstance(default, float):
        return float(node.number())
    if isinstance(default, tuple):
        like = default[0]
        return tuple(_option(item, like) for item in node.items())
    return node.text()


def _prepare(entries: dict[str, Node], scripts: Path | None) -> tuple[tuple[str, ...], ...]:
    if "prepare" not in entries:
        return ()
    commands = []
    for node in entries["prepare"].items():
        try:
            words = tuple(shlex.split(node.text()))
        except ValueError as error:
            node.fail(str(error))
        if scripts is not None and not (scripts / words[0]).is_file():
            node.fail(f"there is no script {words[0]!r} in {scripts.name}/")
        _check_placeholders(node, words)
        commands.append(words)
    return tuple(commands)


def _rows(node: Node, top: dict[str, Node], folder: Path, data: tuple[str, ...]) -> tuple[Row, ...]:
    rows: list[Row] = []
    for item in node.items():
        row = _row(item, top, folder, data)
        names = [one.name for one in rows]
        if row.name in names:
            item.fail(f"there are two rows {row.name!r}")
        if row.start_from is not None:
            start = _one_of(Node(row.start_from, item.file, f"{item.key}.start_from"), names)
            missing = set(row.data) - set(rows[names.index(start)].data)
            if missing:
                item.fail(f"start_from: row {start!r} does not train on {', '.join(sorted(missing))}")
        rows.append(row)
    if all(row.hidden for row in rows):
        node.fail("there is no row, or all are hidden")
    return tuple(rows)


def _row(node: Node, top: dict[str, Node], folder: Path, data: tuple[str, ...]) -> Row:
    known = ("name", "label", "config", "overrides", "data", "evaluate", "start_from", "x", "hidden")
    entries = node.mapping(known)
    if "name" not in entries:
        node.fail("the key 'name' is missing")
    name = entries["name"].name()
    config = entries.get("config") or top.get("config")
    if config is None:
        node.fail("no config: neither this row nor the top of the file has the key 'config'")
    path = _config(config, folder)
    lazy = path.suffix == ".py"
    overrides = {**_overrides(top.get("overrides"), lazy), **_overrides(entries.get("overrides"), lazy)}
    start = entries["start_from"].text() if "start_from" in entries else None
    return Row(
        name=name,
        label=entries["label"].text() if "label" in entries else name,
        config=path,
        overrides=overrides,
        data=_some_of(entries["data"], data) if "data" in entries else data,
        evaluate=_variants(entries.get("evaluate"), lazy),
        start_from=start,
        x=float(entries["x"].number()) if "x" in entries else None,
        hidden=entries["hidden"].flag() if "hidden" in entries else False,
        place=f"{node.file}: {node.key} ({name})",
    )


def _variants(node: Node | None, lazy: bool) -> tuple[Variant, ...]:
    variants: list[Variant] = []
    for item in node.items() if node is not None else ():
        entries = item.mapping(("name", "label", "overrides"))
        if "name" not in entries:
            item.fail("the key 'name' is missing")
        name = entries["name"].name()
        if name in [one.name for one in variants]:
            item.fail(f"there are two evaluations {name!r}")
        label = entries["label"].text() if "label" in entries else name
        variants.append(Variant(name, label, _overrides(entries.get("overrides"), lazy)))
    return tuple(variants)


def _config(node: Node, folder: Path) -> Path:
    name = node.text()
    suffix = ".py" if name.endswith(".py") else ".yaml"
    beside = folder / name
    try:
        return find_config_file(beside if beside.is_file() else name, suffix).resolve()
    except ConfigError as error:
        return node.fail(str(error).partition(" It has:")[0])


def _overrides(node: Node | None, lazy: bool) -> Overrides:
    """{dotted key: value}; nested mappings are written out."""
    if node is None:
        return {}
    found: Overrides = {}
    managed = MANAGED_LAZY if lazy else MANAGED
    for key, entry in node.mapping().items():
        if isinstance(entry.value, dict):
            inner = _overrides(Node(entry.value, entry.file, entry.key), lazy)
            found.update({f"{key}.{name}": value for name, value in inner.items()})
        else:
            found[key] = entry.value
    for key, value in found.items():
        if key.lstrip("+~") in managed:
            node.fail(f"{key} is set by the command ({managed[key.lstrip('+~')]})")
        _check_placeholders(node, [value])
    return found


def _check_placeholders(node: Node, values: Collection[Any]) -> None:
    for value in values:
        if isinstance(value, (list, dict)):
            _check_placeholders(node, list(value.values()) if isinstance(value, dict) else value)
        for name in re.findall(r"\{(\w+)\}", value) if isinstance(value, str) else ():
            if name not in PLACEHOLDERS:
                known = " and ".join("{" + one + "}" for one in PLACEHOLDERS)
                node.fail(f"{{{name}}} in {value!r} is not known; there are {known}")


def _one_of(node: Node, known: list[str]) -> str:
    name = node.text()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(known) or 'none'}"
        node.fail(f"{name!r} is not known here.{hint}")
    return name


def _some_of(node: Node, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(_one_of(item, list(known)) for item in node.items())
    if not names:
        node.fail("the list is empty")
    return names
