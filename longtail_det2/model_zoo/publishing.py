"""Publish a checkpoint: weights, config, metrics, classes and a card in one folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtail_det2 import __version__
from longtail_det2.checkpoint.weights import HASH_DIGITS, Weights, read_weights, sha256_of, write_weights
from longtail_det2.engine.run_record import read_run_record
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import write_json

from .model_zoo import zoo_key
from .new_folder import new_folder
from .run_facts import class_names_beside, config_without_paths, read_plain_yaml, results_at, value_at


@dataclass(frozen=True)
class Published:
    """What :func:`publish` wrote.

    Attributes:
        weights: the weights file.
        document: content of metrics.json.
    """

    weights: Path
    document: dict[str, Any]


def publish(
    source: str | Path,
    output: str | Path = "",
    *,
    zoo: str | Path = "",
    name: str = "",
) -> Published:
    """Publish a checkpoint of a run: all files appear, or none.

    Args:
        source: a run's folder (its model_final.pth, else its newest checkpoint) or a checkpoint in one.
        output: folder to create.
        zoo: instead, a zoo's folder: the checkpoint goes to the sub-folder named after its config.
        name: of the config in the model zoo; "" takes what run.json says.

    Raises:
        ConfigError: something is missing or damaged, or the target exists.
        OSError: the target cannot be written.
    """
    if bool(output) == bool(zoo):
        raise ConfigError("name either an output folder or a zoo's folder (--output or --zoo)")
    checkpoint = find_checkpoint_file(source)
    run = checkpoint.parent
    record = read_run_record(run)
    recorded = str(record.get("config") or "")
    in_zoo = name or (recorded if record.get("in_model_zoo") else "")
    if zoo and not in_zoo:
        raise ConfigError(f"{run}/run.json names no config of the model zoo: give it with --name")
    with new_folder(output or Path(zoo) / zoo_key(in_zoo)) as folder:
        weights = read_weights(checkpoint)
        if not weights.class_ids:
            raise ConfigError(f"{checkpoint} does not say which classes it is for: it is of another program")
        config = read_plain_yaml(run / "config.yaml")
        document = _facts(run, config, weights)
        document |= {"config": name or recorded or None, "seed": record.get("seed")}
        file = _write_hashed(folder, checkpoint.stem, weights, str(document["config"] or ""))
        document["weights"] = {"file": file.name, "sha256": sha256_of(file)}
        classes = {"ids": weights.class_ids, "names": class_names_beside(run, weights.class_ids) or None}
        write_json(folder / "metrics.json", document, indent=1)
        write_json(folder / "classes.json", classes, indent=1)
        (folder / "config.yaml").write_text(config_without_paths(config), encoding="utf-8")
        (folder / "README.md").write_text(_card(document, in_zoo, "MODEL" not in config), encoding="utf-8")
    return Published(Path(output or Path(zoo) / zoo_key(in_zoo)) / file.name, document)


def find_checkpoint_file(source: str | Path) -> Path:
    """Return the checkpoint that a run's folder or a file means.

    Raises:
        ConfigError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"there is no run or checkpoint {path}")
    latest = path / "last_checkpoint"
    candidates = ["model_final.pth", latest.read_text().strip() if latest.is_file() else ""]
    for name in filter(None, candidates):
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"{path} has no checkpoint: neither model_final.pth nor one named by last_checkpoint")


def _facts(run: Path, config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """What the config and the run say; None or nothing for what they do not say."""
    lazy = "MODEL" not in config
    sets = ("dataloader.train.dataset.names", "dataloader.test.dataset.names")
    keys = sets if lazy else ("DATASETS.TRAIN", "DATASETS.TEST")
    train, test = (value_at(config, key) or [] for key in keys)
    train, test = ([one] if isinstance(one, str) else list(one) for one in (train, test))
    return {
        "train": train,
        "iterations": weights.iteration,
        "batch_size": value_at(
            config, "dataloader.train.total_batch_size" if lazy else "SOLVER.IMS_PER_BATCH"
        ),
        "results": results_at(run, weights.iteration, test),
        "num_classes": len(weights.class_ids),
        "parameters": sum(value.numel() for value in weights.tensors.values()),
        "published_with": f"longtail_det2 {__version__}",
    }


def _write_hashed(folder: Path, stem: str, weights: Weights, config: str) -> Path:
    """Write the weights to a file whose name ends in the first digits of its SHA-256."""
    unnamed = folder / "weights.safetensors"
    write_weights(unnamed, replace(weights, about={"longtail_det2": __version__, "config": config}))
    return unnamed.rename(folder / f"{stem}_{sha256_of(unnamed)[:HASH_DIGITS]}.safetensors")


def _card(document: Mapping[str, Any], in_zoo: str, lazy: bool) -> str:
    """The card; its front matter is read by the Hugging Face hub."""
    unknown = "not recorded"
    config = document["config"] or unknown
    rows = {
        "config": f"{config} (`config.yaml` is the whole of it)",
        "classes": f"{document['num_classes']} (`classes.json`)",
        "numbers in the weights": f"{document['parameters']:,}",
        "trained on": ", ".join(document["train"]) or unknown,
        "iterations": document["iterations"] or unknown,
        "images per iteration": document["batch_size"] or unknown,
        "seed": unknown if document["seed"] is None else document["seed"],
        "SHA-256": f"`{document['weights']['sha256']}`",
    }
    file = document["weights"]["file"]
    if lazy:
        shown, weights = in_zoo or document["config"] or "CONFIG.py", f"train.init_checkpoint={file}"
    else:
        shown, weights = in_zoo or "config.yaml", f"MODEL.WEIGHTS {file}"
    facts = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: longtail_det2
pipeline_tag: object-detection
---

# {Path(config).stem if document["config"] else "Detector"}

Weights of an object detector trained with longtail_det2.

| | |
| --- | --- |
{facts}

## Results

{result_table(document)}

## Use

```bash
longtail-det2 eval --config-file {shlex.quote(shown)} {weights}
```
"""


def result_table(document: Mapping[str, Any]) -> str:
    """The results of a published checkpoint as a Markdown table."""
    if not document["results"]:
        return "The run has no evaluation of these weights."
    lines = ["| data set | metric | value |", "| --- | --- | --- |"]
    for dataset, metrics in sorted(document["results"].items()):
        lines += [f"| {dataset} | {metric} | {value:.2f} |" for metric, value in sorted(metrics.items())]
    return "\n".join(lines)
