"""Publish a checkpoint: weights, config, metrics, classes and a card in one folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from longtail_det2 import __version__
from longtail_det2.checkpoint.weights import HASH_DIGITS, Weights, read_weights, sha256_of, write_weights
from longtail_det2.engine.run_record import read_run_record
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import PartialFolder, write_json

from .model_zoo import zoo_key
from .run_facts import class_names_beside, config_without_paths, read_plain_yaml, results_at, value_at


class Published(NamedTuple):
    """What :func:`publish` wrote: the path of the weights, and the content of metrics.json."""

    weights: Path
    document: dict[str, Any]


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Give a folder to fill that gets its name when the block ends, and vanishes after an error.

    Raises:
        ConfigError: there is something at `target` already; an empty folder does not count.
        OSError: the folder cannot be made.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already: nothing is overwritten, choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with PartialFolder(target) as partial:
        yield partial.folder
        os.rename(partial.folder, target)


def publish(
    source: str | Path, output: str | Path = "", *, zoo: str | Path = "", name: str = ""
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
    target = Path(output or Path(zoo) / zoo_key(in_zoo))
    with new_folder(target) as folder:
        weights = read_weights(checkpoint)
        if not weights.class_ids:
            raise ConfigError(f"{checkpoint} does not say which classes it is for: it is of another program")
        config = read_plain_yaml(run / "config.yaml")
        unnamed = folder / "weights.safetensors"
        about = {"longtail_det2": __version__, "config": name or recorded}
        write_weights(unnamed, replace(weights, about=about))
        sha256 = sha256_of(unnamed)
        file = unnamed.rename(folder / f"{checkpoint.stem}_{sha256[:HASH_DIGITS]}.safetensors")
        document = {
            "config": name or recorded or None,
            "seed": record.get("seed"),
            **_facts(run, config, weights),
            "weights": {"file": file.name, "sha256": sha256},
        }
        classes = {"ids": weights.class_ids, "names": class_names_beside(run, weights.class_ids) or None}
        write_json(folder / "metrics.json", document, indent=1)
        write_json(folder / "classes.json", classes, indent=1)
        (folder / "config.yaml").write_text(config_without_paths(config), encoding="utf-8")
        (folder / "README.md").write_text(_card(document, in_zoo, config), encoding="utf-8")
    return Published(target / file.name, document)


def find_checkpoint_file(source: str | Path) -> Path:
    """Return the checkpoint that a run's folder or a file means.

    Raises:
        ConfigError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return path
    latest = path / "last_checkpoint"
    for name in ("model_final.pth", latest.read_text().strip() if latest.is_file() else ""):
        if (path / name).is_file():
            return path / name
    raise ConfigError(
        f"there is no run or checkpoint {path}: a run has model_final.pth, or last_checkpoint that names one"
    )


def _facts(run: Path, config: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """What the config and the run say; None or nothing for what they do not say."""
    keys = ("DATASETS.TRAIN", "DATASETS.TEST", "SOLVER.IMS_PER_BATCH")
    if "MODEL" not in config:
        keys = ("train.dataset.names", "test.dataset.names", "train.total_batch_size")
        config = config.get("dataloader") or {}
    train, test, batch_size = (value_at(config, key) for key in keys)
    train, test = ([one] if isinstance(one, str) else list(one or ()) for one in (train, test))
    return {
        "train": train,
        "iterations": weights.iteration,
        "batch_size": batch_size,
        "results": results_at(run, weights.iteration, test),
        "num_classes": len(weights.class_ids),
        "parameters": sum(value.numel() for value in weights.tensors.values()),
        "published_with": f"longtail_det2 {__version__}",
    }


def _card(document: Mapping[str, Any], in_zoo: str, cfg: Mapping[str, Any]) -> str:
    """The card; its front matter is read by the Hugging Face hub."""
    lazy = "MODEL" not in cfg
    of_images = value_at(cfg, "MODEL.META_ARCHITECTURE") == "MultiLabelClassifier"
    task, kind = "object-detection", "an object detector"
    if of_images:
        task, kind = "image-classification", "a classifier of images"
    known = {key: "not recorded" if value in (None, []) else value for key, value in document.items()}
    weights, config = document["weights"], document["config"]
    shown = in_zoo or ((config or "CONFIG.py") if lazy else "config.yaml")
    option = "train.init_checkpoint=" if lazy else "MODEL.WEIGHTS "
    return f"""---
library_name: longtail_det2
pipeline_tag: {task}
---

# {Path(config or "Detector").stem}

Weights of {kind} trained with longtail_det2.

| | |
| --- | --- |
| config | {known["config"]} (`config.yaml` is the whole of it) |
| classes | {document["num_classes"]} (`classes.json`) |
| numbers in the weights | {document["parameters"]:,} |
| trained on | {", ".join(document["train"]) or known["train"]} |
| iterations | {known["iterations"]} |
| images per iteration | {known["batch_size"]} |
| seed | {known["seed"]} |
| SHA-256 | `{weights["sha256"]}` |

## Results

{result_table(document)}

## Use

```bash
longtail-det2 eval --config-file {shlex.quote(shown)} {option}{weights["file"]}
```
"""


def result_table(document: Mapping[str, Any]) -> str:
    """Return the results of a published checkpoint as a Markdown table."""
    if not document["results"]:
        return "The run has no evaluation of these weights."
    lines = ["| data set | metric | value |", "| --- | --- | --- |"]
    for dataset, metrics in sorted(document["results"].items()):
        lines += [f"| {dataset} | {metric} | {value:.2f} |" for metric, value in sorted(metrics.items())]
    return "\n".join(lines)
