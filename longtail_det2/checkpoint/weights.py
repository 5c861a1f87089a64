"""Files that hold a model's weights and nothing that could run: reading, writing, hashes.

The header of a ``.safetensors`` file also has the classes. The name of a published file ends in the first
eight digits of its SHA-256: ``model_final_0123abcd.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtail_det2.utils.errors import ConfigError

from .files import read_checkpoint

HASH_DIGITS = 8
"""Digits of the SHA-256 in the name of a published file."""

_HASH_IN_NAME = re.compile(r"_([0-9a-f]{8})\.safetensors$")
_CLASS_IDS = "class_ids"
TRAINING_ONLY_KEY = "training_only"
"""Key of a training checkpoint whose value is :func:`training_only_parts`."""


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
        """Return the form that Detectron2's checkpointers hand around."""
        return {"model": self.tensors, _CLASS_IDS: list(self.class_ids)}


def training_only_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the beginnings of the names of parameters that a trained model does without.

    They are those of modules whose attribute ``training_only`` is true.
    """
    parts = [name for name, module in model.named_modules() if getattr(module, TRAINING_ONLY_KEY, False)]
    return tuple(f"{name}." for name in parts)


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a weights file or a training checkpoint; nothing in it is executed.

    Args:
        path: ``.safetensors``, ``.pth``, or ``.pkl`` of a model zoo; of a training checkpoint only the
            weights are returned, without the parts that only training needs.

    Raises:
        ConfigError: the file does not exist, is damaged, is of another kind, or is not what the hash in its
            name says.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        if match := _HASH_IN_NAME.search(path.name):
            check_hash(path, match[1])
        return _read_safetensors(path)
    if path.suffix not in (".pth", ".pkl"):
        raise ConfigError(f"{path}: weights files end in .safetensors, .pth or .pkl")
    data = read_checkpoint(str(path))
    left_out = tuple(data.get(TRAINING_ONLY_KEY) or ())
    tensors = {
        name: torch.as_tensor(value) for name, value in data["model"].items() if not name.startswith(left_out)
    }
    trainer = data.get("trainer")
    last = data.get("iteration", trainer.get("iteration") if isinstance(trainer, Mapping) else None)
    class_ids = tuple(map(str, data.get(_CLASS_IDS) or ()))
    return Weights(tensors, class_ids, last + 1 if isinstance(last, int) else None)


def write_weights(path: str | os.PathLike[str], weights: Weights) -> None:
    """Write a ``.safetensors`` file.

    Raises:
        ConfigError: the package safetensors is not installed.
        OSError: the file cannot be written; what was written of it stays, so write below a temporary name.
    """
    header = {**weights.about, "format": "pt", _CLASS_IDS: json.dumps(list(weights.class_ids))}
    if weights.iteration is not None:
        header["iteration"] = str(weights.iteration)
    # A tensor of its own for each name: names that share memory are refused.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.tensors.items()}
    Path(path).write_bytes(_safetensors().torch.save(tensors, header))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: str | os.PathLike[str], expected: str) -> None:
    """Compare a file with a hash, or with the beginning of one.

    Raises:
        ConfigError: the file is not what was published.
    """
    found = sha256_of(path)
    if not found.startswith(expected):
        raise ConfigError(
            f"{path} is damaged or not the file that was published: its SHA-256 begins with "
            f"{found[:HASH_DIGITS]}, expected {expected[:HASH_DIGITS]}. Fetch it again."
        )


def _read_safetensors(path: Path) -> Weights:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        class_ids = json.loads(header.pop(_CLASS_IDS, "[]"))
    except (library.SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no complete safetensors file: {error}") from error
    if not isinstance(class_ids, list) or not all(isinstance(one, str) for one in class_ids):
        raise ConfigError(f"{path}: its header's {_CLASS_IDS} is no JSON list of strings")
    iteration = header.pop("iteration", "")
    return Weights(tensors, tuple(class_ids), int(iteration) if iteration.isdigit() else None, header)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ConfigError(".safetensors files need a package: pip install safetensors") from None
    return safetensors
