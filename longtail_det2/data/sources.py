"""What a store remembers of the files that it was made of, and whether they have changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longtail_det2.utils.errors import DataError

_HASH_BYTES = 1 << 20


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """{"path", "size", "mtime_ns", "sha256"} of a file.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            while data := file.read(_HASH_BYTES):
                digest.update(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return describe_status(path, status, digest.hexdigest())


def describe_status(path: str | os.PathLike[str], status: os.stat_result, sha256: str) -> dict[str, Any]:
    """What a store's header keeps of a source file."""
    return {
        "path": os.path.abspath(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256,
    }


def is_same_file(source: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Whether a file is the source that a header describes.

    Path, size and modification time are taken for proof; where they leave a doubt, the content decides.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if status.st_size != source["size"]:
        return False
    if os.path.abspath(path) == source["path"] and status.st_mtime_ns == source.get("mtime_ns"):
        return True
    return describe_file(path)["sha256"] == source["sha256"]


def changed_sources(sources: Iterable[Mapping[str, Any]]) -> list[Path]:
    """The source files that are still where they were, but with other content.

    Files that are gone, or that cannot be read, say nothing about the store and are left out.

    Args:
        sources: entries of a header's "sources".
    """
    changed = []
    for source in sources:
        try:
            if os.path.isfile(source["path"]) and not is_same_file(source, source["path"]):
                changed.append(Path(source["path"]))
        except (DataError, KeyError, TypeError):
            continue
    return changed
