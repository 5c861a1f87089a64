"""Files of statistics: JSON with one line a class, in the class order that the statistics hold for.

The form::

    {
     "format": "longtail_det2.concurrent_rates",
     "version": 1,
     ...,
     "classes": [
      {"id": "/m/04yx4", "name": "Man", ...},
      {"id": "/m/03bt1vf", "name": "Woman", ...}
     ]
    }

A person can read and search it, a spreadsheet or `jq` can take it apart, and reading it runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer, read_json

_LARGEST_COUNT = 2**53
"""Above it a count would not be exact as a float."""


def write_class_file(
    path: str | os.PathLike[str], head: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]
) -> None:
    """Write a file of statistics; it appears under its name only when it is complete.

    Args:
        path: file to write or to replace.
        head: what stands before the classes: `format`, `version`, and what else belongs to all classes.
        classes: {"id": ..., "name": ..., ...} of each class in class-index order.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    lines = [f" {_dump(key)}: {_dump(value)},\n" for key, value in head.items()]
    body = ",\n".join("  " + _dump(one) for one in classes)
    text = "{\n" + "".join(lines) + ' "classes": [\n' + body + "\n ]\n}\n"
    try:
        with atomic_writer(path) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot be written: a class id or name is no text ({error.reason})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None


def read_class_file(
    path: str | os.PathLike[str], file_format: str, version: int, command: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what `write_class_file` wrote.

    Args:
        path: file to read.
        file_format: the `format` that it must have.
        version: the `version` that it must have.
        command: what makes such a file, for the messages.

    Returns:
        Everything but the classes; and the classes, with distinct string `id`s and string `name`s.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    path = Path(path)
    content = _read_json(path, command)
    if content.get("format") != file_format:
        raise DataError(f"{path}: format {shorten(content.get('format'))} is not {file_format!r}")
    if content.get("version") != version or isinstance(content.get("version"), bool):
        raise DataError(
            f"{path}: version {shorten(content.get('version'))}, this package reads {version}; "
            f"make the file again with {command}"
        )
    classes = content.pop("classes", None)
    if not isinstance(classes, list) or not classes:
        raise DataError(f"{path}: 'classes' is not a list of at least one class")
    known: set[str] = set()
    for place, one in enumerate(classes):
        if not isinstance(one, dict) or not isinstance(one.get("id"), str):
            raise DataError(f"{path}: class {place} has no 'id' that is a string")
        if one["id"] in known:
            raise DataError(f"{path}: class {place} has the id {one['id']!r} of an earlier class")
        known.add(one["id"])
        if not isinstance(one.setdefault("name", one["id"]), str):
            raise DataError(f"{path}: class {one['id']!r} has a 'name' that is no string")
    return content, classes


def read_counts(path: str | os.PathLike[str], classes: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """A column of counts: (K,) int64.

    Raises:
        DataError: a value is missing or no whole number >= 0.
    """
    for one in classes:
        check_count(path, f"class {one['id']!r}: {key!r}", one.get(key))
    return np.array([one[key] for one in classes], dtype=np.int64)


def check_count(path: str | os.PathLike[str], what: str, value: object) -> int:
    """`value` if it is a count.

    Raises:
        DataError: it is no whole number in [0, 2**53].
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT:
        raise DataError(f"{path}: {what} is {shorten(value)}, not a whole number >= 0")
    return value


def read_sources(path: str | os.PathLike[str], head: Mapping[str, Any]) -> tuple[str, ...]:
    """What the statistics were counted in: names of data sets or folders of stores.

    Raises:
        DataError: not a list of strings.
    """
    sources = head.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(one, str) for one in sources):
        raise DataError(f"{path}: 'sources' is not a list of strings")
    return tuple(sources)


def shorten(value: object) -> str:
    """A value from a file as it stands in a message, which is one line whatever the file holds."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_json(path: Path, command: str) -> dict[str, Any]:
    content = read_json(path, f"make it with {command}")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object: make it again with {command}")
    return content


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
