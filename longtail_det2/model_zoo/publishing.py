"""Making of a training run a folder that can be given away: weights, config, metrics, classes, a card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail_det2 import __version__
from longtail_det2.checkpoint.weights import (
    FORMATS,
    HASH_DIGITS,
    Weights,
    read_weights,
    sha256_of,
    write_weights,
)
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import atomic_writer

from .new_folder import check_vacant, folder_that_appears
from .run_facts import RunFacts, config_without_paths, read_run
from .zoo_index import INDEX_NAME, Checkpoint, index_document, index_key, read_index


@dataclass(frozen=True)
class Published:
    """What :func:`publish` made.

    Attributes:
        weights: the weights file.
        sha256: of it.
        metrics: data set -> metric -> value, as the run measured them.
    """

    weights: Path
    sha256: str
    metrics: dict[str, dict[str, float]]


def publish(
    source: str | Path,
    output: str | Path = "",
    *,
    zoo: str | Path = "",
    name: str = "",
    file_format: str = "safetensors",
    config_file: str | Path = "",
    class_file: str | Path = "",
) -> Published:
    """Publishes a checkpoint of a run: all of it, or nothing appears.

    Args:
        source: a run's folder (its model_final.pth, else its newest checkpoint) or a checkpoint in one.
        output: folder to make.
        zoo: instead, a zoo's folder: the checkpoint goes to a sub-folder named after its config, and into
            the index of the zoo (see :mod:`.zoo_index`).
        name: of the config in the model zoo; "" takes what run.json says.
        file_format: "safetensors" or "pth".
        config_file: the run's config; "" for config.yaml in its folder.
        class_file: JSON with the class identifiers, for a checkpoint that does not bear them: a list, or
            classes.json of an annotation store.

    Raises:
        ConfigError: something is missing or damaged, or the target exists.
        OSError: the target cannot be written.
    """
    if bool(output) == bool(zoo):
        raise ConfigError("name either an output folder or a zoo's folder (--output or --zoo)")
    if file_format not in FORMATS:
        raise ConfigError(f"there is no file format {file_format!r}; known: {', '.join(FORMATS)}")
    checkpoint = find_checkpoint_file(source)
    weights = read_weights(checkpoint)
    ids, names = _classes(weights, class_file)
    facts = read_run(checkpoint.parent, ids, config_file)
    name, names = name or facts.config_name, names or facts.class_names
    if zoo and not name:
        raise ConfigError(
            f"{facts.folder}/run.json names no config of the model zoo, which a zoo needs: give it with "
            "--name"
        )
    target = Path(output) if output else Path(zoo) / index_key(name)
    index = _writable_index(Path(zoo), name) if zoo else {}
    check_vacant(target)
    results = facts.results_at(weights.iteration)
    config = name or facts.config_file
    about = {"longtail_det2": __version__, **({"config": config} if config else {})}
    weights = replace(weights, class_ids=ids, about=about)
    with folder_that_appears(target) as folder:
        file, sha256 = _write_hashed(folder, checkpoint.stem, file_format, weights)
        document = _metrics_document(weights, facts, file, sha256, results, config)
        _write(folder / "config.yaml", config_without_paths(facts.config))
        _write(folder / "metrics.json", json.dumps(document, indent=1) + "\n")
        classes = {"ids": list(ids), "names": list(names) or None}
        _write(folder / "classes.json", json.dumps(classes, indent=1, ensure_ascii=False) + "\n")
        _write(folder / "README.md", _card(document, facts, name))
    if zoo:
        key = index_key(name)
        index[key] = Checkpoint(key, f"{key}/{file}", sha256, len(ids) or None, results)
        with atomic_writer(Path(zoo) / INDEX_NAME) as stream:
            stream.write(index_document(index))
    return Published(target / file, sha256, results)


def find_checkpoint_file(source: str | Path) -> Path:
    """The checkpoint that a run's folder or a file means.

    Raises:
        ConfigError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        latest = path / "last_checkpoint"
        candidates = ["model_final.pth", latest.read_text().strip() if latest.is_file() else ""]
        for name in filter(None, candidates):
            if (path / name).is_file():
                return path / name
        raise ConfigError(
            f"{path} has no checkpoint: neither model_final.pth nor one that training went on from"
        )
    if not path.is_file():
        raise ConfigError(f"there is no run or checkpoint {path}")
    return path


def _classes(weights: Weights, class_file: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Identifiers and, if the class file has them, names of the classes."""
    if not class_file:
        if not weights.class_ids:
            raise ConfigError("the checkpoint does not say which classes it is for: give them with --classes")
        return weights.class_ids, ()
    try:
        content = json.loads(Path(class_file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{class_file} cannot be read as JSON: {error}") from error
    ids = content.get("ids") if isinstance(content, dict) else content
    names = (content.get("names") or ()) if isinstance(content, dict) else ()
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise ConfigError(f"{class_file} holds no list of class identifiers")
    if weights.class_ids and tuple(ids) != weights.class_ids:
        raise ConfigError(f"{class_file} lists other classes than the checkpoint bears")
    return tuple(ids), tuple(map(str, names))


def _write_hashed(folder: Path, stem: str, suffix: str, weights: Weights) -> tuple[str, str]:
    """Writes the weights under a name that bears their hash; the name and the whole hash."""
    unnamed = folder / f"weights.{suffix}"
    write_weights(unnamed, weights)
    sha256 = sha256_of(unnamed)
    name = f"{stem}_{sha256[:HASH_DIGITS]}.{suffix}"
    unnamed.rename(folder / name)
    return name, sha256


def _metrics_document(
    weights: Weights,
    facts: RunFacts,
    file: str,
    sha256: str,
    results: dict[str, dict[str, float]],
    config: str,
) -> dict[str, Any]:
    return {
        "config": config or None,
        "weights": {"file": file, "sha256": sha256},
        "parameters": sum(value.numel() for value in weights.tensors.values()),
        "num_classes": len(weights.class_ids),
        "train": list(facts.train),
        "iterations": weights.iteration,
        "batch_size": facts.batch_size,
        "seed": facts.seed,
        "results": results,
        "published_with": f"longtail_det2 {__version__}",
    }


def _card(document: dict[str, Any], facts: RunFacts, name: str) -> str:
    unknown = "not recorded"
    config = document["config"] or unknown
    rows = [
        ("config", f"{config} (`config.yaml` is the whole of it)"),
        ("classes", f"{document['num_classes']} (`classes.json`)"),
        ("numbers in the weights", f"{document['parameters']:,}"),
        ("trained on", ", ".join(document["train"]) or unknown),
        ("iterations", document["iterations"] or unknown),
        ("images an iteration", document["batch_size"] or unknown),
        ("seed", "none was fixed" if document["seed"] is None else document["seed"]),
        ("SHA-256", f"`{document['weights']['sha256']}`"),
    ]
    lines = [f"# {Path(config).stem if document['config'] else facts.folder.name}", ""]
    lines += ["Weights of an object detector trained with longtail_det2.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows), ""]
    lines += ["## Results", "", *_result_lines(document["results"]), "", "## Use", ""]
    lines += ["```bash", *_command(document["weights"]["file"], facts, name), "```", ""]
    return "\n".join(lines)


def _command(file: str, facts: RunFacts, name: str) -> tuple[str, str]:
    """How to evaluate the weights; in place of a YAML file of the user's, with the config beside them."""
    if facts.is_lazy:
        config = shlex.quote(name or facts.config_file or "CONFIG.py")
        script, option = "scripts/lazyconfig_train_net.py", f"train.init_checkpoint={file}"
    else:
        config = shlex.quote(name or "config.yaml")
        script, option = "scripts/train_net.py", f"MODEL.WEIGHTS {file}"
    return f"python {script} --eval-only \\", f"    --config-file {config} {option}"


def _result_lines(results: dict[str, dict[str, float]]) -> Iterator[str]:
    if not results:
        yield "The run has no evaluation of these weights."
        return
    yield from ("| data set | metric | value |", "| --- | --- | --- |")
    for dataset, metrics in sorted(results.items()):
        for metric, value in sorted(metrics.items()):
            yield f"| {dataset} | {metric} | {value:.2f} |"


def _writable_index(zoo: Path, name: str) -> dict[str, Checkpoint]:
    path = zoo / INDEX_NAME
    index = read_index(path) if path.is_file() else {}
    if index_key(name) in index:
        raise ConfigError(f"{path} has weights for {name} already: nothing is overwritten")
    return index


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def summary_lines(published: Published) -> Sequence[str]:
    """What a user wants to see after publishing."""
    return [f"{published.weights}", f"SHA-256 {published.sha256}", *_result_lines(published.metrics)]
