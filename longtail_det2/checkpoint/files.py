"""Checkpoint files: written whole or not at all, read without executing anything, found after a crash."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import torch

from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
"""File of a run's folder that holds the name of the checkpoint that training resumes from."""

_PARTIAL = ".partial-"
_OWN_NAMES = re.compile(r"model_(\d{7,}|final)\.pth")
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError)
"""What reading a damaged file may raise, beside `pickle.UnpicklingError`."""


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read or written; the message names the file and says what to do."""


@contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` when it is complete, and vanishes if it never is.

    The data are on the disk before the file has its name: neither a killed process nor a crashed machine
    leaves a part of it there.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; an older file of that name stays.
    """
    temporary = f"{path}{_PARTIAL}{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path))
    except (OSError, RuntimeError) as error:
        # PyTorch's archive writer may report the operating system's error as one of its own.
        cause = error if isinstance(error, OSError) else _first_os_error(error)
        if cause is None:
            raise
        raise CheckpointError(
            f"{path} cannot be written: {cause.strerror or cause}. Older checkpoints are intact. Make room "
            "or permissions for the folder (OUTPUT_DIR, or train.output_dir) and go on with --resume"
        ) from error
    finally:
        with suppress(OSError):
            os.remove(temporary)


def remove_partial_files(folder: str) -> None:
    """Removes what processes left that were killed while they wrote a checkpoint of this folder."""
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if _PARTIAL in name:
                with suppress(OSError):
                    os.remove(os.path.join(folder, name))


def resume_candidates(folder: str) -> list[str]:
    """Checkpoints that training may resume from, the first choice first.

    That is the one that ``last_checkpoint`` names, then the trainers' other ones, newest first.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in names if _OWN_NAMES.fullmatch(name)]
    paths.sort(key=lambda path: (os.path.getmtime(path), path), reverse=True)
    last = _last_checkpoint(folder)
    return paths if last is None else [last, *(path for path in paths if path != last)]


def _last_checkpoint(folder: str) -> str | None:
    try:
        with open(os.path.join(folder, LAST_CHECKPOINT), encoding="utf-8") as file:
            name = file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = os.path.join(folder, os.path.basename(name))
    return path if name and os.path.isfile(path) else None


def read_checkpoint(path: str) -> Any:
    """Content of a ``.pth``, ``.pyth`` or ``.pkl`` file, on the CPU.

    Only tensors, arrays and plain Python values are read; a file that asks for anything else, which could be
    code, is refused before that is touched.

    Raises:
        CheckpointError: the file is damaged, or holds more than that.
    """
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return _ArrayUnpickler(file, encoding="latin1").load()
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path} is no complete checkpoint ({_first_line(error)}): it may have been truncated; fetch or "
            "write it again, or use an older one"
        ) from error


def _check_sums(path: str) -> None:
    """Compares the parts of PyTorch's archive with their checksums, which PyTorch does not."""
    if not zipfile.is_zipfile(path):
        return  # the older form has none
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"damaged archive: {error}") from error
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")


def _refusal(path: str, reason: str) -> str:
    named = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", reason)
    if named is None:
        return f"{path} is no complete checkpoint ({reason.splitlines()[0] if reason else 'empty'})"
    return (
        f"{path} holds more than weights ({named[1]}), which could run code on this machine: nothing of it "
        "was loaded. Ask its author for the weights alone: .safetensors, or torch.save of the state_dict()"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _first_os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: str) -> None:
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of NumPy arrays by name, the form of Detectron2's and Caffe2's model zoos."""

    _ALLOWED = {  # noqa: RUF012 - a constant
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        multiarray = ("numpy.core.multiarray", "numpy._core.multiarray")
        if module in multiarray and name in ("_reconstruct", "scalar"):
            return super().find_class("numpy._core.multiarray" if _NUMPY_2 else "numpy.core.multiarray", name)
        raise pickle.UnpicklingError(f"global {module}.{name}")


_NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


def _encode(text: str, encoding: str) -> bytes:
    """How pickles hold bytes; only the encoding that they use."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in an encoding other than latin1: {encoding!r}")
    return text.encode("latin1")
