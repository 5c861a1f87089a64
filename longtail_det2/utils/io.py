"""Files and folders that appear when they are complete, JSON with one-line errors, signatures of files."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from longtail_det2.utils.errors import DataError

_PARTIAL = ".partial-"


def read_json(
    path: Path,
    advice: str = "",
    error: type[DataError] = DataError,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read a JSON file, with or without a byte-order mark.

    Args:
        path: the file.
        advice: what to do about a file that is absent or damaged; follows the message.
        error: what is raised.
        object_hook: of `json.loads`.

    Raises:
        DataError: no such file, it cannot be read, it is not JSON, or an object has a key twice; in one line.
    """
    end = f"; {advice}" if advice else ""

    def make(pairs: list[tuple[str, Any]]) -> Any:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"an object has the key {twice!r} twice")
        return content if object_hook is None else object_hook(content)

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=make)
    except FileNotFoundError:
        raise error(f"{path}: no such file{end}") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    except RecursionError:
        raise error(f"{path}: not a usable JSON file (nested too deeply){end}") from None
    except ValueError as reason:
        syntax = isinstance(reason, (json.JSONDecodeError, UnicodeDecodeError))
        kind = "not a JSON file, or only a part of one" if syntax else "not a usable JSON file"
        raise error(f"{path}: {kind} ({reason}){end}") from None


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically; of one line without `indent`."""
    with atomic_writer(path) as file:
        json.dump(content, file, indent=indent)
        file.write("\n")


@contextmanager
def atomic_writer(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a stream whose file appears under its name only when the block ends without an error.

    Args:
        path: the file.
        mode: "w" for text in UTF-8, "wb" for bytes.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding) as stream:
        yield stream


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty file beside `path` that becomes `path` when the block ends without an error.

    Its data are on the disk before: neither a killed process nor a crashed machine leaves a part at `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{_PARTIAL}{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class PartialFolder:
    """A hidden folder beside `path` that takes its place when it is complete; a context manager.

    A lock beside `folder`, the hidden one, is held as long as the process lives, so that a killed run is told
    from a running one in any container and on any machine: making a `PartialFolder` removes what killed runs
    left for the same `path`. Where the file system has no locks, nothing is removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the folder. Raises OSError if its parent is absent or cannot be written."""
        self.path = Path(path)
        _remove_stale(self.path)
        lock: IO[bytes] | None = None
        while lock is None:
            self.folder = self.path.with_name(f".{self.path.name}{_PARTIAL}{secrets.token_hex(4)}")
            lock = _lock(self._lock_path, new=True)
        self._lock: IO[bytes] = lock
        try:
            self.folder.mkdir()
        except OSError:
            self.remove()
            raise

    @property
    def _lock_path(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    def publish(self) -> None:
        """Give the folder its name. What had the name goes, or stays if an error is raised."""
        old = _old(self.folder)
        if self.path.exists():
            os.replace(self.path, old)
        try:
            os.replace(self.folder, self.path)
        except OSError:
            if old.exists():
                os.replace(old, self.path)
            raise
        _sync(self.path.parent)
        self.remove()

    def remove(self) -> None:
        """Remove the folder, if it is still there, and the lock."""
        _remove_folder(self.folder)
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    def __enter__(self) -> PartialFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _remove_stale(path: Path) -> None:
    """Remove what killed runs left for `path`; put back what they had moved away to take its place."""
    for lock_path in path.parent.glob(f".{glob.escape(path.name)}{_PARTIAL}*.lock"):
        lock = _lock(lock_path, new=False)
        if lock is None:
            continue
        folder = lock_path.with_suffix("")
        with lock, suppress(OSError):
            if _old(folder).exists() and not path.exists():
                os.replace(_old(folder), path)
            _remove_folder(folder)
            lock_path.unlink()


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _lock(path: Path, new: bool) -> IO[bytes] | None:
    """Open and lock a file, made if `new`; None if another process has the lock, or has removed the file.

    Without locks in the file system a new file counts as locked, another one as not.
    """
    try:
        file = path.open("xb" if new else "rb+")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:
        mine = new
    if not mine:
        file.close()
        return None
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some file systems cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a file by {"path", "size", "mtime_ns", "sha256"}.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            while data := file.read(1 << 20):
                digest.update(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    facts = {"path": os.path.abspath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {**facts, "sha256": digest.hexdigest()}


def is_same_file(description: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is the one that `describe_file` described.

    Equal path, size and modification time are taken for proof; where they leave a doubt, the hash decides.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if status.st_size != description["size"]:
        return False
    if os.path.abspath(path) == description["path"] and status.st_mtime_ns == description.get("mtime_ns"):
        return True
    return describe_file(path)["sha256"] == description["sha256"]
