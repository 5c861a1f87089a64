"""What a training run recorded about itself: read from its folder, nothing guessed.

Configs of runs are read as plain data. The saved form of a lazy config names Python objects; none is imported
here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longtail_det2.engine.run_record import read_run_record
from longtail_det2.utils.errors import ConfigError

_RESULT = re.compile(r"^(?:(?P<dataset>.+)/)?(?P<metric>(?:bbox|segm|keypoints)/[^/]+)$")


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run; a field is empty or None where the run does not say.

    Attributes:
        folder: OUTPUT_DIR of the run.
        config: content of its config.yaml as plain data.
        config_name: name in the model zoo of the config that the run was started with.
        config_file: the same, or the name of a file of the user's, without its folders.
        seed: None if the run took a random one.
        batch_size: images a step.
        train, test: data sets.
        class_names: display names in index order.
    """

    folder: Path
    config: dict[str, Any]
    config_name: str = ""
    config_file: str = ""
    seed: int | None = None
    batch_size: int | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    _log: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def is_lazy(self) -> bool:
        """Whether the run was configured by a lazy (Python) config."""
        return "MODEL" not in self.config

    def results_at(self, iterations: int | None) -> dict[str, dict[str, float]]:
        """What the run's evaluation measured after so many iterations.

        Returns:
            Data set -> metric, such as "bbox/mAP50" -> value; {} if the run did not evaluate then.
        """
        results: dict[str, dict[str, float]] = {}
        for line in self._log:
            # An evaluation in between is logged under the step that it follows, the last one under the next.
            if iterations is None or line.get("iteration") not in (iterations - 1, iterations):
                continue
            for key, value in line.items():
                match = _RESULT.match(key)
                dataset = match and (match["dataset"] or (self.test[0] if len(self.test) == 1 else ""))
                if match and dataset and value == value:  # NaN: a mean over no classes
                    results.setdefault(dataset, {})[match["metric"]] = float(value)
        return results


def read_run(folder: str | Path, class_ids: Sequence[str], config_file: str | Path = "") -> RunFacts:
    """Reads the facts of a run.

    Args:
        folder: OUTPUT_DIR of the run.
        class_ids: of the checkpoint; class names are taken from evaluations of the same classes only.
        config_file: the run's config; "" for config.yaml in the folder.

    Raises:
        ConfigError: there is no config, or it cannot be read.
    """
    folder = Path(folder)
    path = Path(config_file) if config_file else folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: a run has its config.yaml in its folder; name another with --config-file"
        )
    config = read_plain_yaml(path)
    lazy = "MODEL" not in config
    seed = _at(config, "train.seed" if lazy else "SEED")
    record = read_run_record(folder)
    file = str(record.get("config", ""))
    return RunFacts(
        folder=folder,
        config=config,
        config_name=file if record.get("in_model_zoo") else "",
        config_file=file,
        seed=seed if isinstance(seed, int) and seed >= 0 else None,
        batch_size=_at(config, "dataloader.train.total_batch_size" if lazy else "SOLVER.IMS_PER_BATCH"),
        train=_names(_at(config, "dataloader.train.dataset.names" if lazy else "DATASETS.TRAIN")),
        test=_names(_at(config, "dataloader.test.dataset.names" if lazy else "DATASETS.TEST")),
        class_names=class_names_beside(folder, class_ids),
        _log=list(_log_lines(folder / "metrics.json")),
    )


def config_without_paths(config: Mapping[str, Any]) -> str:
    """A config as YAML without the places of files on the machine that the run was on."""
    content = json.loads(json.dumps(config))
    for key, value in (
        ("OUTPUT_DIR", "./output"),
        ("DATASETS.ROOT", ""),
        ("DATASETS.STORES", []),
        ("DATASETS.STATISTICS", ""),
        ("train.output_dir", "./output"),
        ("datasets.root", ""),
        ("datasets.stores", []),
        ("dataloader.evaluator.output_dir", None),
    ):
        _replace(content, key, value)
    for key in ("MODEL.WEIGHTS", "train.init_checkpoint"):
        weights = _at(content, key)
        if isinstance(weights, str) and "://" not in weights:
            _replace(content, key, "")
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110)


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML in which Python objects are named, and leaves them names."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return suffix or loader.construct_scalar(node)  # pyright: ignore[reportArgumentType]


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _plain)
_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """A config file as plain data: Python objects that it names stay names.

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


def class_names_beside(folder: Path, class_ids: Sequence[str]) -> tuple[str, ...]:
    """Display names of classes, from a published checkpoint's classes.json or a run's evaluations.

    Args:
        folder: of the checkpoint.
        class_ids: names of other classes are not taken.

    Returns:
        In index order; () if nothing there names these classes.
    """
    for path in [folder / "classes.json", *sorted(folder.glob("inference/*/results.json"))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "classes" in content:
                content = {key + "s": [str(one[key]) for one in content["classes"]] for key in ("id", "name")}
            ids, names = content["ids"], content.get("names") or ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # absent, of another evaluator, or half a file: names are a convenience only
        if ids == list(class_ids) and len(names) == len(ids):
            return tuple(map(str, names))
    return ()


def _log_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue  # a run that was killed may leave half a line
        if isinstance(content, dict):
            yield content


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else ()


def _at(content: Mapping[str, Any], key: str) -> Any:
    node: Any = content
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _replace(content: dict[str, Any], key: str, value: Any) -> None:
    parent, _, last = key.rpartition(".")
    node = _at(content, parent) if parent else content
    if isinstance(node, dict) and last in node:
        node[last] = value
