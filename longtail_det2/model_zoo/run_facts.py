"""What a training run recorded about itself: config.yaml, metrics.json, results.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from longtail_det2.utils.errors import ConfigError

_TASK = r"(?:(?:coco_|lvis_)?(?:bbox|segm|keypoints)(?:_fixed)?|image_labels)"
_RESULT = re.compile(rf"^(?:(?P<dataset>.+)/)?(?P<metric>{_TASK}/[^/]+)$")
_WEIGHTS = ("MODEL.WEIGHTS", "train.init_checkpoint")
_PLACES: dict[str, Any] = {
    "OUTPUT_DIR": "./output",
    "DATASETS.ROOT": "",
    "DATASETS.STORES": [],
    "DATASETS.STATISTICS": "",
    "train.output_dir": "./output",
    "datasets.root": "",
    "datasets.stores": [],
    "dataloader.evaluator.output_dir": None,
    **dict.fromkeys(_WEIGHTS, ""),
}


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML in which Python objects are named, as the names; nothing is imported."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else suffix


for _tag in ("name:", ""):
    _PlainLoader.add_multi_constructor(f"tag:yaml.org,2002:python/{_tag}", _plain)


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """Read a config file, also a saved lazy config, as plain data.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a YAML config: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, got {type(content).__name__}")
    return content


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where there is none."""
    node: Any = content
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def config_without_paths(config: Mapping[str, Any]) -> str:
    """Return a config as YAML without the paths of the machine that the run was on."""
    content = json.loads(json.dumps(config))
    for key, value in _PLACES.items():
        parent, _, last = key.rpartition(".")
        node = value_at(content, parent) if parent else content
        is_url = key in _WEIGHTS and "://" in str(value_at(content, key))
        if isinstance(node, dict) and last in node and not is_url:
            node[last] = value
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110)


def class_names_beside(folder: Path, class_ids: Sequence[str]) -> list[str]:
    """Return display names of classes, from a published checkpoint's classes.json or a run's evaluations.

    Args:
        folder: of the checkpoint.
        class_ids: names of other classes are not taken.

    Returns:
        In index order; [] if nothing there names these classes.
    """
    for path in [folder / "classes.json", *sorted(folder.glob("inference/*/results.json"))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "classes" in content:
                content = {f"{key}s": [str(one[key]) for one in content["classes"]] for key in ("id", "name")}
            ids, names = content["ids"], content.get("names") or []
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # names are a convenience
        if ids == list(class_ids) and len(names) == len(ids):
            return [str(name) for name in names]
    return []


def results_at(folder: Path, iterations: int | None, test: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what a run's evaluation measured after `iterations`, from its metrics.json.

    Args:
        folder: of the run.
        iterations: of the checkpoint; None if unknown.
        test: data sets of the evaluation.

    Returns:
        Data set -> metric, such as "bbox/mAP50" -> value; {} if the run did not evaluate then.
    """
    results: dict[str, dict[str, float]] = {}
    path = folder / "metrics.json"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue  # a killed run may leave half a line
        # A periodic evaluation is logged under the step that it follows, the last one under the next.
        if iterations is None or content.get("iteration") not in (iterations - 1, iterations):
            continue
        for key, value in content.items():
            match = _RESULT.match(key)
            dataset = match and (match["dataset"] or (test[0] if len(test) == 1 else ""))
            if match and dataset and value == value:  # NaN: a mean over no classes
                results.setdefault(dataset, {})[match["metric"]] = float(value)
    return results
