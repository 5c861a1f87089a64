"""Files that hold a model's weights and nothing that could run: reading, writing, hashes.

Two forms: ``.safetensors`` (tensors after a JSON header; the classes are in the header) and ``.pth``
(``torch.save`` of the weights under "model" and the classes under "class_ids", read with ``weights_only``). A
published file bears the first eight digits of its SHA-256 in its name: ``model_final_0123abcd.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtail_det2.utils.errors import ConfigError

from .files import read_checkpoint

FORMATS = ("safetensors", "pth")
"""Suffixes of files that can be written and read here."""

HASH_DIGITS = 8
"""Digits of the SHA-256 in the name of a published file."""

_HASH_IN_NAME = re.compile(r"_([0-9a-f]{8})\.(?:safetensors|pth)$")
_CLASS_IDS = "class_ids"


@dataclass(frozen=True)
class Weights:
    """Content of a file.

    Attributes:
        tensors: by parameter or buffer name.
        class_ids: identifiers of the classes in index order; () if the file does not say.
        iteration: training iterations that made the weights; None if the file does not say.
        about: further strings by name.
    """

    tensors: dict[str, Tensor]
    class_ids: tuple[str, ...] = ()
    iteration: int | None = None
    about: dict[str, str] = field(default_factory=dict)

    def as_checkpoint(self) -> dict[str, Any]:
        """The form that Detectron2's checkpointers hand around."""
        return {"model": self.tensors, _CLASS_IDS: list(self.class_ids)}


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Reads a weights file or a training checkpoint; nothing in it is executed.

    Args:
        path: ``.safetensors``, ``.pth``, or ``.pkl`` of a model zoo; of a training checkpoint
            only the weights are returned.

    Raises:
        ConfigError: the file does not exist, is damaged, is of another kind, or is not what the hash in its
            name says.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        check_hash_in_name(path)
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pkl"):
        return _read_pth(path)
    raise ConfigError(f"{path}: weights files end in .safetensors, .pth or .pkl")


def write_weights(path: str | os.PathLike[str], weights: Weights) -> None:
    """Writes a file of the form that its suffix names; equal weights give equal bytes.

    Raises:
        ConfigError: the suffix is unknown, or safetensors is not installed.
        OSError: the file cannot be written; what was written of it stays, so write below a temporary name.
    """
    path = Path(path)
    tensors = {name: weights.tensors[name].detach().cpu().contiguous() for name in sorted(weights.tensors)}
    if path.suffix == ".safetensors":
        header = {**weights.about, "format": "pt", _CLASS_IDS: json.dumps(list(weights.class_ids))}
        if weights.iteration is not None:
            header["iteration"] = str(weights.iteration)
        # A tensor of its own for each name: names that share memory are refused.
        data = _safetensors().save({name: value.clone() for name, value in tensors.items()}, header)
        path.write_bytes(_with_sorted_header(data))
    elif path.suffix == ".pth":
        data = {"model": tensors, _CLASS_IDS: list(weights.class_ids), "about": dict(weights.about)}
        if weights.iteration is not None:
            data["iteration"] = weights.iteration
        with open(path, "wb") as file:  # a file name would become part of the archive
            torch.save(data, file)
    else:
        raise ConfigError(f"{path}: weights files end in .safetensors or .pth")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: str | os.PathLike[str], expected: str) -> None:
    """Compares a file with a hash, or with the beginning of one.

    Raises:
        ConfigError: the file is not what was published.
    """
    found = sha256_of(path)
    if not found.startswith(expected):
        raise ConfigError(
            f"{path} is damaged or not the file that was published: its SHA-256 begins with "
            f"{found[:HASH_DIGITS]}, expected {expected[:HASH_DIGITS]}. Fetch it again."
        )


def check_hash_in_name(path: str | os.PathLike[str]) -> None:
    """Compares a file with the hash in its name; names without one pass.

    Raises:
        ConfigError: they differ.
    """
    match = _HASH_IN_NAME.search(os.path.basename(path))
    if match:
        check_hash(path, match[1])


def _with_sorted_header(data: bytes) -> bytes:
    """The same file with its header's entries in order; the library writes them as a hash table has them.

    A file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces to a
    multiple of 8) and the tensors, whose places count from the end of the header.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _read_safetensors(path: Path) -> Weights:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (library.SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no complete safetensors file: {error}") from error
    class_ids = _parse_class_ids(header.pop(_CLASS_IDS, "[]"), path)
    iteration = header.pop("iteration", "")
    return Weights(tensors, class_ids, int(iteration) if iteration.isdigit() else None, header)


def _read_pth(path: Path) -> Weights:
    data = read_checkpoint(str(path))
    tensors = {name: torch.as_tensor(value) for name, value in data["model"].items()}
    class_ids = tuple(map(str, data.get(_CLASS_IDS) or ()))
    return Weights(tensors, class_ids, _iteration_of(data), _about_of(data))


def _iteration_of(data: Mapping[str, Any]) -> int | None:
    """Iterations done: counted from 1 in a published file, the index of the last one in a checkpoint."""
    if "about" in data:
        return data.get("iteration")
    trainer = data.get("trainer")
    last = data.get("iteration", trainer.get("iteration") if isinstance(trainer, Mapping) else None)
    return int(last) + 1 if isinstance(last, int) else None


def _about_of(data: Mapping[str, Any]) -> dict[str, str]:
    about = data.get("about")
    return {str(key): str(value) for key, value in about.items()} if isinstance(about, Mapping) else {}


def _parse_class_ids(text: str, path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{path}: its header's {_CLASS_IDS} is no JSON list of strings")
    return tuple(found)


class _Safetensors:
    """The functions of the optional package that are used here."""

    def __init__(self) -> None:
        try:
            from safetensors import SafetensorError, safe_open
            from safetensors.torch import save
        except ImportError as error:
            raise ConfigError(
                '.safetensors files need the package safetensors: pip install "longtail-det2[hub]"'
            ) from error
        self.SafetensorError: type[Exception] = SafetensorError
        self.safe_open: Any = safe_open
        self.save: Any = save


def _safetensors() -> _Safetensors:
    return _Safetensors()
