"""The files of an annotation store: what each may hold, reading with checks, and their atomic writer.

The layout is described in `longtail_det2.data.store`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import PartialFolder, atomic_writer, read_json, write_json

FORMAT = "longtail_det2.annotations"
VERSION = 2
FORMS = ("open_images", "coco", "lvis", "image_labels")
"""The forms of annotations, which say how results are judged."""
FREQUENCIES = ("r", "c", "f")
"""LVIS's frequency bins: rare, common, frequent."""
_LONGEST_SIDE = 1_000_000
"""Sides and vertices beyond it are damage; pycocotools allocates memory by the length of an edge."""
_MOST_PIXELS = 1 << 30
"""Larger images are damage: six times what Pillow opens by default."""
_CHECKED_ROWS = 1 << 20  # checked at once
_AGAIN = "prepare the store again"


class ObjectFlag(IntFlag):
    """Attribute bits of an object, in the order of the Open Images columns."""

    OCCLUDED = 1
    TRUNCATED = 2
    GROUP_OF = 4
    DEPICTION = 8
    INSIDE = 16


class ImageLabel(IntEnum):
    """What is verified about a class in a whole image."""

    ABSENT = 0
    PRESENT = 1
    NOT_EXHAUSTIVE = 2
    """Present, but not all objects of the class have a box (LVIS's `not_exhaustive_category_ids`)."""


# What is wrong with some rows of a column, "" if nothing is. `limit` is the number of rows that offsets point
# to, or the number of classes. Each reads its rows once or twice, vectorised.


def _text(values: np.ndarray, limit: int) -> str:
    if not values.tobytes().isascii():
        for one in values.tolist():
            try:
                one.decode()
            except UnicodeDecodeError:
                return f"{one!r} is not UTF-8"
    return ""


def _ids(values: np.ndarray, limit: int) -> str:
    return "must ascend, each id once" if np.any(values[1:] <= values[:-1]) else _text(values, limit)


def _offsets(values: np.ndarray, limit: int, *, least: int = 0) -> str:
    if values.size == 0 or values[0] < 0 or values[-1] > limit:
        return f"must lie between 0 and {limit}"
    return f"must ascend, by {least} or more" if np.diff(values).min(initial=least) < least else ""


def _within(values: np.ndarray, limit: int, *, low: float, high: float | None = None) -> str:
    high = limit - 1 if high is None else high
    if values.size and not (values.min() >= low and values.max() <= high):
        finite = np.isfinite(values).all() if values.dtype.kind == "f" else True
        found = f"has values from {values.min():g} to {values.max():g}" if finite else "is not finite"
        return f"{found}; it must lie between {low:g} and {high:g}"
    return ""


def _sizes(values: np.ndarray, limit: int) -> str:
    problem = _within(values, limit, low=0, high=_LONGEST_SIDE)
    if not problem and values.prod(axis=1, dtype=np.int64).max(initial=0) > _MOST_PIXELS:
        return f"has images of more than {_MOST_PIXELS} pixels"
    return problem


def _boxes(values: np.ndarray, limit: int) -> str:
    is_sound = (values[:, :2] <= values[:, 2:]).all()
    return _within(values, limit, low=0, high=1) or ("" if is_sound else "has inverted boxes")


def _areas(values: np.ndarray, limit: int) -> str:
    good = np.isnan(values) | ((values > 0) & np.isfinite(values))
    return "" if good.all() else "has areas that are neither positive nor unknown (NaN)"


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        attribute: its name in `AnnotationStore`.
        dtype: a NumPy type, "S" for bytes of any width, "class" for a class index.
        rows: the table that it has one row for, and one more if it has a target.
        problem: (rows, limit) -> what is wrong with them.
        width: shape of a row.
        target: of offsets, the table that they delimit rows of.
        group: columns that are there together or not at all; "" for those of every store.
    """

    attribute: str
    dtype: str
    rows: str
    problem: Callable[[np.ndarray, int], str]
    width: tuple[int, ...] = ()
    target: str = ""
    group: str = ""

    @property
    def extra(self) -> int:
        """How many rows it has beyond those of its table."""
        return 1 if self.target else 0


_int64 = "<i8"
_byte, _status = partial(_within, low=0, high=255), partial(_within, low=0, high=max(ImageLabel))
_vertices = partial(_within, low=-_LONGEST_SIDE, high=_LONGEST_SIDE)
_class = partial(_within, low=0)
_run = partial(_within, low=ord("0"), high=ord("o"))  # other bytes would corrupt pycocotools' memory
_one_label, _triangle = partial(_offsets, least=1), partial(_offsets, least=3)
COLUMNS = {
    "image_id": Column("image_ids", "S", "images", _ids),
    "file_name": Column("file_names", "S", "images", _text),
    "image_size": Column("image_sizes", "<i4", "images", _sizes, width=(2,)),
    "object_offsets": Column("object_offsets", _int64, "images", _offsets, target="objects"),
    "box": Column("boxes", "<f4", "objects", _boxes, width=(4,)),
    "flags": Column("flags", "|u1", "objects", _byte),
    "label_offsets": Column("label_offsets", _int64, "objects", _one_label, target="labels"),
    "label": Column("labels", "class", "labels", _class),
    "image_label_offsets": Column("image_label_offsets", _int64, "images", _offsets, target="image_labels"),
    "image_label": Column("image_labels", "class", "image_labels", _class),
    "image_label_status": Column("image_label_status", "|u1", "image_labels", _status),
    "polygon_offsets": Column("polygon_offsets", _int64, "objects", _offsets, (), "polygons", "masks"),
    "vertex_offsets": Column("vertex_offsets", _int64, "polygons", _triangle, (), "vertices", "masks"),
    "vertex": Column("vertices", "<f4", "vertices", _vertices, (2,), group="masks"),
    "run_offsets": Column("run_offsets", _int64, "objects", _offsets, (), "run_bytes", "masks"),
    "run": Column("runs", "|u1", "run_bytes", _run, group="masks"),
    "area": Column("areas", "<f8", "objects", _areas, group="areas"),
}
"""All columns by name; offsets come before the columns of the rows that they delimit."""
_HEADER = {
    "form": str,
    "exhaustive_labels": (bool, type(None)),
    "counts": {str: int},
    "sources": [dict],
    "options": dict,
    "summary": dict,
    "image_root": (str, type(None)),
    "image_root_relative": (str, type(None)),
}
_CLASSES = {
    "ids": [str],
    "names": [str],
    "hierarchy": ({str: [str]}, type(None)),
    "frequency": ([str], type(None)),
}
"""Forms of JSON values: a type, [of items], {str: of values}, or (alternatives)."""


def read_store(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The header, the classes and the memory-mapped columns of a store; values of columns are not checked.

    Raises:
        DataError: no store there, an incomplete or damaged one, or one of another format version.
    """
    header = _read_part(path, "header.json")
    if header.get("format") != FORMAT:
        raise DataError(f"{path / 'header.json'}: format {header.get('format')!r} is not {FORMAT!r}")
    if header.get("version") != VERSION:
        raise DataError(
            f"{path}: store version {header.get('version')!r}, this package reads {VERSION}; "
            "make the store again with longtail-det2 prepare"
        )
    _check_form(path / "header.json", header, _HEADER)
    if header["form"] not in FORMS:
        raise _damaged(path / "header.json", f"form {header['form']!r} is none of {', '.join(FORMS)}")
    classes = _read_part(path, "classes.json")
    _check_form(path / "classes.json", classes, _CLASSES)
    if problem := _classes_problem(classes, header["counts"].get("classes")):
        raise _damaged(path / "classes.json", problem)
    groups = {"masks" if "polygons" in header["counts"] else "", "areas" if header.get("has_areas") else ""}
    columns = {name: column for name, column in COLUMNS.items() if column.group in {"", *groups}}
    counts = Counter(header["counts"])
    return header, classes, {name: _map(path, name, column, counts) for name, column in columns.items()}


def check_rows(path: Path, name: str, values: np.ndarray, counts: Mapping[str, int]) -> None:
    """Check rows of a column.

    Args:
        path: folder of the store, for the message.
        name: of the column.
        values: the rows; of offsets, one more.
        counts: rows of each table, and the number of classes.

    Raises:
        DataError: a value is damaged.
    """
    column = COLUMNS[name]
    for start in range(0, max(len(values) - column.extra, 1), _CHECKED_ROWS):
        part = values[start : start + _CHECKED_ROWS + 1]  # one row in common
        if problem := column.problem(part, counts[column.target or "classes"]):
            raise _damaged(path / f"{name}.npy", f"it {problem}")


def _damaged(file: Path, problem: object) -> DataError:
    return DataError(f"{file} is damaged: {problem}; {_AGAIN}")


def _read_part(path: Path, name: str) -> dict[str, Any]:
    if not os.path.isfile(path / name):
        state = "an incomplete annotation store" if os.path.isdir(path) else "no annotation store"
        raise DataError(f"{path}: {state} ({name} is missing); make it with longtail-det2 prepare")
    content = read_json(path / name, _AGAIN)
    if not isinstance(content, dict):
        raise _damaged(path / name, "it is no JSON object")
    return content


def _check_form(file: Path, content: Mapping[str, Any], forms: Mapping[str, Any]) -> None:
    for key, form in forms.items():
        if not _fits(content.get(key), form):
            raise _damaged(file, f"{key!r} must not be {content.get(key)!r:.80}")


def _fits(value: object, form: Any) -> bool:
    if isinstance(form, tuple):
        return any(_fits(value, one) for one in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(one, form[0]) for one in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_fits(one, form[str]) for one in value.values())
    return type(value) is form


def _classes_problem(classes: Mapping[str, Any], num_classes: object) -> str:
    for key in ("ids", "names", "frequency"):
        if classes.get(key) is not None and len(classes[key]) != num_classes:
            return f"{key!r} has {len(classes[key])} entries for {num_classes} classes"
    if len(set(classes["ids"])) != num_classes:
        return "an id occurs twice"
    if wrong := set(classes.get("frequency") or ()) - set(FREQUENCIES):
        return f"'frequency' has {min(wrong)!r}; it must be one of {', '.join(map(repr, FREQUENCIES))}"
    return ""


def _map(path: Path, name: str, column: Column, counts: Mapping[str, int]) -> np.ndarray:
    file = path / f"{name}.npy"
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: the store is incomplete, {_AGAIN}") from None
    except Exception as error:  # NumPy's parser of headers lets through whatever they cause
        raise _damaged(file, error) from None
    expected = (counts[column.rows] + column.extra, *column.width)
    types = {"class": ("<i2", "<i4")}.get(column.dtype, (column.dtype,))
    if values.shape != expected:
        raise _damaged(file, f"it has shape {values.shape}, not {expected}")
    if values.dtype.kind != "S" if column.dtype == "S" else values.dtype not in map(np.dtype, types):
        raise _damaged(file, f"it has type {values.dtype}, not {' or '.join(types)}")
    if column.target and (values[0] != 0 or values[-1] != counts[column.target]):
        ends = f"{values[0]} to {values[-1]}, not from 0 to {counts[column.target]}"
        raise _damaged(file, f"it goes from {ends} {column.target}")
    # A memmap's subclass machinery costs about ten times as much per small read as a plain array's.
    return values.view(np.ndarray)


class AnnotationStoreWriter:
    """Writes a store column by column, atomically; a context manager.

    ::

        with AnnotationStoreWriter(path) as writer:
            writer.add("image_id", ids)  # every column of `longtail_det2.data.store`, in any order
            writer.finish(class_ids, class_names)

    Leaving the block without `finish` removes what was written. What killed runs left beside `path` is
    removed at the begin.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = Path(os.path.abspath(path))
        if path.exists() and not (
            path.is_dir() and ((path / "header.json").is_file() or not any(path.iterdir()))
        ):
            raise DataError(f"{path} exists and is no annotation store: remove it or choose another place")
        self._counts: dict[str, int] = {}
        self._header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "has_areas": False}
        with self._as_data_error():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = PartialFolder(path)

    def __enter__(self) -> AnnotationStoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._partial.remove()

    def add(self, name: str, values: np.ndarray) -> None:
        """Write one column.

        Args:
            name: column of `COLUMNS`.
            values: array whose type casts safely in kind to the column's; strings may be `str` arrays.

        Raises:
            DataError: values that the column cannot hold, or the disk is full.
        """
        column = COLUMNS[name]
        values = np.asarray(values)
        if values.dtype.kind == "U":
            values = np.char.encode(values, "utf-8")
        elif column.dtype == "S" and not values.size:
            values = values.astype("S1")  # an empty list has no type of its own
        if values.shape[1:] != column.width:
            raise DataError(f"column {name!r} has shape {values.shape}, not (rows, *{column.width})")
        check_rows(self.path, name, values, {column.target or "classes": 2**31})
        if column.dtype == "class":
            values = values.astype("<i2" if values.max(initial=0) < 2**15 else "<i4", copy=False)
        elif column.dtype != "S":
            values = values.astype(column.dtype, copy=False)
        if name == "image_size":
            self._header["has_image_sizes"] = bool((values > 0).all())
        self._header["has_areas"] |= name == "area"
        self._counts.setdefault(column.rows, len(values) - column.extra)
        with (
            self._as_data_error(values.nbytes),
            atomic_writer(self._partial.folder / f"{name}.npy", "wb") as file,
        ):
            np.save(file, values, allow_pickle=False)

    def finish(
        self,
        class_ids: Sequence[str],
        class_names: Sequence[str] | None = None,
        *,
        form: str = "open_images",
        parents: Mapping[str, Sequence[str]] | None = None,
        frequency: Sequence[str] | None = None,
        exhaustive_labels: bool | None = None,
        image_root: str | os.PathLike[str] | None = None,
        sources: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Write header and classes, check that everything fits, and put the store in its place.

        Args:
            class_ids: K identifiers in class-index order.
            class_names: K names; the ids if None.
            form: one of `FORMS`.
            parents: {"child id": ["parent id", ...]}; None means no hierarchy.
            frequency: K letters of `FREQUENCIES`; None means that the classes have no such bins.
            exhaustive_labels: see `AnnotationStore.exhaustive_labels`; None goes by the form.
            image_root: folder that the file names are relative to.
            sources: one {"path", "size", "sha256", ...} per source file.
            options: what else the content depends on (JSON values).
            summary: counts worth keeping (JSON values).

        Raises:
            DataError: a column is missing, the columns or the class lists disagree, or the disk is full.
        """
        names = class_ids if class_names is None else class_names
        classes = {"ids": list(class_ids), "names": list(names), "hierarchy": parents, "frequency": frequency}
        header = {
            **self._header,
            "form": form,
            "exhaustive_labels": exhaustive_labels,
            "counts": {**self._counts, "classes": len(class_ids)},
            "sources": list(sources),
            "options": options or {},
            "summary": summary or {},
        }
        if image_root is not None:
            root, real = os.path.abspath(image_root), os.path.realpath(image_root)
            header["image_root"] = root
            header["image_root_relative"] = os.path.relpath(real, os.path.realpath(self.path))
        with self._as_data_error():
            write_json(self._partial.folder / "classes.json", classes)
            write_json(self._partial.folder / "header.json", header)
            columns = read_store(self._partial.folder)[2]
            for name in ("label", "image_label"):
                check_rows(self.path, name, columns[name], header["counts"])
            self._partial.publish()

    @contextmanager
    def _as_data_error(self, size: int = 0) -> Iterator[None]:
        """Turn what the file system refuses into a DataError that says what to do.

        Args:
            size: bytes about to be written.
        """
        try:
            yield
        except OSError as error:
            kept = "; the store that is there stays as it was" if self.path.exists() else ""
            raise DataError(
                f"{self.path}: cannot write the store: {_reason(self.path, error, size)}{kept}"
            ) from error


def _reason(path: Path, error: OSError, size: int) -> str:
    folder = next(one for one in path.parents if one.exists())
    free = shutil.disk_usage(folder).free
    # NumPy reports a short write without an error number.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and free < size):
        free_space = f"{free / 1e6:.1f} MB free at {folder}"
        return f"the disk is full ({free_space}); make room, or choose another --output"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or folder
        return f"{error.strerror} ({where}); make the folder writable, or choose another --output"
    return f"{error.strerror or error}"
