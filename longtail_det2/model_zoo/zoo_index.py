"""Which config has published weights, where they are, and fetching them with a check of their hash.

A zoo is a folder, or a repository on the Hugging Face hub, with one sub-folder a checkpoint (as
``scripts/publish_checkpoint.py --zoo`` writes them) and an index ``checkpoints.json`` ::

    {"format": "longtail_det2.zoo", "version": 1, "checkpoints": {
        "shapes/faster_rcnn_tiny_sigmoid_shapes": {
            "file": "shapes/faster_rcnn_tiny_sigmoid_shapes/model_final_0123abcd.safetensors",
            "sha256": "0123abcd...", "classes": 60, "metrics": {"shapes_validation": {"bbox/mAP50": 78.0}}}}}

``$LONGTAIL_DET2_ZOO``, a folder or a hub repository ("owner/name"), is looked into first. Then comes the
index beside this module, of what the project itself published; its entries may have "repository", the hub
repository that the file is in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from longtail_det2.checkpoint.weights import check_hash
from longtail_det2.utils.errors import ConfigError

INDEX_NAME = "checkpoints.json"
INDEX_FORMAT, INDEX_VERSION = "longtail_det2.zoo", 1
ZOO_VARIABLE = "LONGTAIL_DET2_ZOO"

_OWN_INDEX = Path(__file__).resolve().parent / INDEX_NAME
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, as an index describes it.

    Attributes:
        name: of the config, without suffix.
        file: path below the zoo.
        sha256: of the file.
        num_classes: None if the index does not say.
        metrics: data set -> metric -> value.
        repository: on the hub; "" for the zoo that the index is in.
    """

    name: str
    file: str
    sha256: str
    num_classes: int | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    repository: str = ""

    def as_entry(self) -> dict[str, Any]:
        """What stands in the index."""
        entry: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "metrics": self.metrics}
        if self.num_classes is not None:
            entry["classes"] = self.num_classes
        if self.repository:
            entry["repository"] = self.repository
        return entry


def index_key(name: str) -> str:
    """Key of a config in an index: a YAML config and its lazy twin share their weights."""
    return re.sub(r"\.(yaml|yml|py)$", "", name)


def read_index(path: str | os.PathLike[str]) -> dict[str, Checkpoint]:
    """Checkpoints of an index by :func:`index_key`.

    Raises:
        ConfigError: the file does not exist or is no index.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as an index of checkpoints: {error}") from error
    kind = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if kind != (INDEX_FORMAT, INDEX_VERSION) or not isinstance(content.get("checkpoints"), dict):
        raise ConfigError(
            f"{path} is no index of checkpoints of format {INDEX_FORMAT!r}, version {INDEX_VERSION}"
        )
    return {name: _parse_entry(name, entry, path) for name, entry in content["checkpoints"].items()}


def index_document(checkpoints: Mapping[str, Checkpoint]) -> str:
    """The text of an index."""
    entries = {name: checkpoints[name].as_entry() for name in sorted(checkpoints)}
    content = {"format": INDEX_FORMAT, "version": INDEX_VERSION, "checkpoints": entries}
    return json.dumps(content, indent=2) + "\n"


def find_checkpoint(name: str) -> Path:
    """The local file of a config's published weights, its hash verified.

    Args:
        name: of the config, with or without suffix.

    Raises:
        ConfigError: none are published, they cannot be fetched, or the file is damaged.
    """
    key = index_key(name)
    zoo = os.environ.get(ZOO_VARIABLE, "")
    indices = ([read_index(_fetch(zoo, INDEX_NAME))] if zoo else []) + [read_index(_OWN_INDEX)]
    for index in indices:
        if key in index:
            entry = index[key]
            if not zoo and not entry.repository:
                raise ConfigError(f"{name}: set ${ZOO_VARIABLE} to the folder that holds {entry.file}")
            path = _fetch(zoo or entry.repository, entry.file)
            check_hash(path, entry.sha256)
            return path
    known = sorted({key for index in indices for key in index})
    where = f"{zoo} has" if zoo else f"${ZOO_VARIABLE} is not set, and the package itself lists"
    raise ConfigError(
        f"there are no published weights for {name!r}: {where} {', '.join(known) or 'none'}. Train it with "
        "scripts/train_net.py and load your checkpoint with MODEL.WEIGHTS, or publish yours with "
        "scripts/publish_checkpoint.py --zoo"
    )


def _parse_entry(name: str, entry: Any, path: str | os.PathLike[str]) -> Checkpoint:
    wrong = f"{path}: the entry {name!r}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{wrong} is no mapping")
    file, sha256 = str(entry.get("file", "")), str(entry.get("sha256", ""))
    if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file:
        raise ConfigError(f"{wrong} has no file below the zoo: {file!r}")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ConfigError(f"{wrong} has no SHA-256: {sha256!r}")
    metrics = entry.get("metrics") or {}
    if not isinstance(metrics, dict):
        raise ConfigError(f"{wrong} has metrics that are no mapping")
    classes, repository = entry.get("classes"), str(entry.get("repository", ""))
    return Checkpoint(name, file, sha256, classes, metrics, repository)


def _fetch(zoo: str, file: str) -> Path:
    """A file of a zoo on this machine."""
    folder = Path(zoo).expanduser()
    if folder.is_dir():
        path = folder / file
        if not path.is_file():
            raise ConfigError(f"the zoo {zoo} has no {file}")
        return path
    if not _REPOSITORY.fullmatch(zoo):
        raise ConfigError(
            f"${ZOO_VARIABLE} is {zoo!r}: neither a folder nor a repository (owner/name) on the Hugging Face "
            "hub"
        )
    return _fetch_from_hub(zoo, file)


def _fetch_from_hub(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ConfigError(
            f"fetching {file} of {repository} needs the package huggingface-hub: "
            'pip install "longtail-det2[hub]"'
        ) from error
    try:
        return Path(hf_hub_download(repository, file))
    except (OSError, ValueError, RuntimeError) as error:  # its errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{file} of the hub repository {repository} cannot be fetched: {reason}") from error
