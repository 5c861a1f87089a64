"""Checkpoint files: read without running anything, found after a crash."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from longtail_det2.utils.errors import ConfigError

LAST_CHECKPOINT = "last_checkpoint"
"""File of a run's folder that holds the name of the checkpoint that training resumes from."""

_OWN_NAMES = re.compile(r"model_(\d{7,}|final)\.pth")


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read or written; the message names the file and says what to do."""


def remove_partial_files(folder: str) -> None:
    """Remove what killed processes left that were writing a checkpoint of this folder."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith((".model_", f".{LAST_CHECKPOINT}")) and ".partial-" in name:
                os.remove(os.path.join(folder, name))


def resume_candidates(folder: str) -> list[str]:
    """List the checkpoints that training may resume from, the first choice first.

    That is the one that ``last_checkpoint`` names, then the trainers' other ones, newest first.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in names if _OWN_NAMES.fullmatch(name)]
    paths.sort(key=lambda path: (os.path.getmtime(path), path), reverse=True)
    last = ""
    with (
        suppress(OSError, UnicodeDecodeError),
        open(os.path.join(folder, LAST_CHECKPOINT), encoding="utf-8") as file,
    ):
        last = os.path.basename(file.read().strip())
    if not last or not os.path.isfile(os.path.join(folder, last)):
        return paths
    return [os.path.join(folder, last), *(path for path in paths if os.path.basename(path) != last)]


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return the content of a ``.pth`` or ``.pkl`` file on the CPU, its weights by name under "model".

    Only tensors, arrays and plain Python values are read; a file that asks for anything else, which could be
    code, is refused before that is touched. Weights under "state_dict" or without a name above them move to
    "model". The forms of Detectron2's and Caffe2's model zoos (``.pkl``) are told by "matching_heuristics".

    Raises:
        CheckpointError: the file is damaged, holds more than that, or no weights.
    """
    try:
        is_archive = zipfile.is_zipfile(path)
        if path.endswith(".pkl") and not is_archive:
            with open(path, "rb") as file:
                return _checked(_from_pickle(_ArrayUnpickler(file, encoding="latin1").load()), path)
        if is_archive:
            _check_sizes(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # readers raise what they like on damaged files
        raise CheckpointError(_reason(path, error)) from error
    return _checked(data, path)


def _check_sizes(path: str) -> None:
    """Refuse an archive with compressed parts: PyTorch writes none, and a small file could fill memory."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(one.file_size for one in archive.infolist())
    if claimed > os.path.getsize(path):
        raise ValueError(f"its parts claim {claimed:,} bytes, more than the file has")


def _reason(path: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", text)
        if named or "weights_only" in text:
            return (
                f"{path} holds more than weights{f' ({named[1]})' if named else ', or is no checkpoint'}: "
                "nothing of it was loaded, as it could run code on this machine. Ask its author for weights "
                "alone: .safetensors, or torch.save of the state_dict()"
            )
    first = next(iter(text.splitlines()), "") or type(error).__name__
    return (
        f"{path} is no complete checkpoint ({first}): it may be truncated; fetch or write it again, or "
        "use an older one"
    )


def _checked(data: Any, path: str) -> dict[str, Any]:
    """The content of a file with its weights under "model", if it has weights."""
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds {type(data).__name__}, not weights by name")
    if not isinstance(data.get("model"), Mapping):
        wrapped = next(
            (key for key in ("state_dict", "model_state") if isinstance(data.get(key), Mapping)), ""
        )
        data = {"model": data[wrapped] if wrapped else data}
    if not data["model"]:
        raise CheckpointError(f"{path} holds no weights by name")
    for name, value in data["model"].items():
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if not isinstance(name, str) or not (numbers or isinstance(value, torch.Tensor)):
            raise CheckpointError(f"{path}: {name!r:.80} is not a tensor but {type(value).__name__}")
    return dict(data)


def _from_pickle(data: Any) -> Any:
    """Detectron2's model zoo, or the older one of Caffe2, whose names are then matched by heuristics."""
    if not isinstance(data, Mapping) or isinstance(data.get("model"), Mapping):
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


class _ArrayUnpickler(pickle.Unpickler):
    """Read pickles of NumPy arrays by name, the form of Detectron2's and Caffe2's model zoos."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"global {module}.{name}")


def _encode(text: str, encoding: str) -> bytes:
    """How pickles hold bytes; only the encoding that they use."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in an encoding other than latin1: {encoding!r}")
    return text.encode("latin1")


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """An array whose content follows; NumPy always begins with an empty one."""
    if tuple(shape) != (0,):
        raise ValueError("an array that is not empty before it is filled")
    return np.ndarray((0,), dtype)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    """An array of protocol 5; its size is that of the buffer, which the file holds."""
    array = np.frombuffer(buffer, dtype=dtype)
    if order == "K" and axis_order is not None:
        return array.reshape(shape).transpose(axis_order)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, content: bytes = b"") -> Any:
    return np.frombuffer(content, dtype=dtype, count=1)[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("_codecs", "encode"): _encode,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
