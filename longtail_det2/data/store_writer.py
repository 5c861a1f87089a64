"""The columns of an annotation store, what each may hold, and their atomic writer.

The layout is described in `longtail_det2.data.store`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import PartialFolder

FORMAT = "longtail_det2.annotations"
VERSION = 2
FORMS = ("open_images", "coco", "lvis")
"""The forms of annotations, which say how results are judged."""
FREQUENCIES = ("r", "c", "f")
"""LVIS's frequency bins: rare, common, frequent."""
_LONGEST_SIDE = 1_000_000
"""Sides and vertices beyond it are damage; pycocotools allocates memory by the length of an edge."""
_MOST_PIXELS = 1 << 30
"""Larger images are damage: six times what Pillow opens by default."""


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


def _anything(values: np.ndarray, limit: int) -> str:
    return ""


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
    if len(values) > 1 and np.diff(values).min() < least:
        return "must ascend" if least < 2 else f"must ascend, by {least} or more"
    return ""


def _within(values: np.ndarray, limit: int, *, low: float, high: float | None = None) -> str:
    high = limit - 1 if high is None else high
    if values.size and not (values.min() >= low and values.max() <= high):
        finite = np.isfinite(values).all() if values.dtype.kind == "f" else True
        found = f"has values from {values.min():g} to {values.max():g}" if finite else "is not finite"
        return f"{found}; it must lie between {low:g} and {high:g}"
    return ""


def _sizes(values: np.ndarray, limit: int) -> str:
    problem = _within(values, limit, low=0, high=_LONGEST_SIDE)
    if not problem and values.size and values.prod(axis=1, dtype=np.int64).max() > _MOST_PIXELS:
        return f"has images of more than {_MOST_PIXELS} pixels"
    return problem


def _boxes(values: np.ndarray, limit: int) -> str:
    problem = _within(values, limit, low=0, high=1)
    if not problem and not (values[:, :2] <= values[:, 2:]).all():
        return "has inverted boxes"
    return problem


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
    problem: Callable[[np.ndarray, int], str] = _anything
    width: tuple[int, ...] = ()
    target: str = ""
    group: str = ""

    @property
    def extra(self) -> int:
        """How many rows it has beyond those of its table."""
        return 1 if self.target else 0


_int64 = "<i8"
_status = partial(_within, low=0, high=max(ImageLabel))
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
    "flags": Column("flags", "|u1", "objects"),
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


def columns_of(groups: set[str]) -> dict[str, Column]:
    """The columns of a store that has some of the groups "masks" and "areas"."""
    return {name: column for name, column in COLUMNS.items() if column.group in {"", *groups}}


def frequency_problem(frequency: object, num_classes: int) -> str:
    """What is wrong with a list of frequencies, to follow its name; "" if nothing is."""
    if not isinstance(frequency, list) or len(frequency) != num_classes:
        found = f"has {len(frequency)} entries" if isinstance(frequency, list) else "is no list"
        return f"{found}, but there are {num_classes} classes"
    for index, one in enumerate(frequency):
        if one not in FREQUENCIES:
            return f"of class {index} is {one!r}; it must be one of {', '.join(map(repr, FREQUENCIES))}"
    return ""


class AnnotationStoreWriter:
    """Writes a store column by column, atomically; a context manager.

    ::

        with AnnotationStoreWriter(path) as writer:
            writer.add("image_id", ids)  # every column of `longtail_det2.data.store`, in any order
            writer.finish(class_ids, class_names)

    Leaving the block without `finish` removes what was written. What killed runs left beside `path` is
    removed on entry.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._partial: PartialFolder | None = None
        self._rows: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._highest_label = -1
        self._sizes_known = True

    def __enter__(self) -> AnnotationStoreWriter:
        if self.path.exists() and not _looks_like_store(self.path):
            raise DataError(
                f"{self.path} exists and is no annotation store: remove it or choose another place"
            )
        with self._as_data_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = PartialFolder(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._partial is not None:
            self._partial.remove()
            self._partial = None

    @property
    def _folder(self) -> Path:
        if self._partial is None:
            raise DataError("use AnnotationStoreWriter as a context manager")
        return self._partial.folder

    def add(self, name: str, values: np.ndarray) -> None:
        """Write one column.

        Args:
            name: column of `COLUMNS`.
            values: array whose type casts safely in kind to the column's; strings may be `str` arrays.

        Raises:
            DataError: unknown column, wrong shape, values that the column cannot hold, or the disk is full.
        """
        folder = self._folder
        if name not in COLUMNS:
            raise DataError(f"unknown column {name!r}; the columns are {', '.join(COLUMNS)}")
        column = COLUMNS[name]
        values = _to_bytes(values) if column.dtype == "S" else np.asarray(values)
        if values.ndim != 1 + len(column.width) or values.shape[1:] != column.width:
            raise DataError(f"column {name!r} has shape {values.shape}, not (rows, *{column.width})")
        problem = column.problem(values, 2**31)
        if column.target and not problem and values[0] != 0:
            problem = "must begin at 0"
        if problem:
            raise DataError(f"column {name!r} {problem}")
        if column.dtype == "class":
            values = values.astype("<i2" if values.size == 0 or values.max() < 2**15 else "<i4", copy=False)
            self._highest_label = max(self._highest_label, int(values.max(initial=-1)))
        elif column.dtype != "S":
            values = values.astype(column.dtype, copy=False)
        if column.target:
            self._last[name] = int(values[-1])
        if name == "image_size":
            self._sizes_known = bool((values > 0).all())
        self._rows[name] = len(values)
        with self._as_data_error(values.nbytes), open(folder / f"{name}.npy", "wb") as file:
            np.save(file, values, allow_pickle=False)
            _flush(file)

    def finish(
        self,
        class_ids: Sequence[str],
        class_names: Sequence[str] | None = None,
        *,
        form: str = "open_images",
        parents: Mapping[str, Sequence[str]] | None = None,
        frequency: Sequence[str] | None = None,
        image_root: str | os.PathLike[str] | None = None,
        sources: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the columns fit each other, write header and classes, and put the store in its place.

        Args:
            class_ids: K identifiers in class-index order.
            class_names: K names; the ids if None.
            form: one of `FORMS`.
            parents: {"child id": ["parent id", ...]}; None means no hierarchy.
            frequency: K letters of `FREQUENCIES`; None means that the classes have no such bins.
            image_root: folder that the file names are relative to.
            sources: one {"path", "size", "sha256", ...} per source file.
            options: what else the content depends on (JSON values).
            summary: counts worth keeping (JSON values).

        Raises:
            DataError: a column is missing, the columns or the class lists disagree, or the disk is full.
        """
        folder = self._folder
        classes: dict[str, Any] = {
            "ids": list(class_ids),
            "names": list(class_ids if class_names is None else class_names),
            "hierarchy": None if parents is None else {child: list(ids) for child, ids in parents.items()},
        }
        num_classes = len(classes["ids"])
        if len(set(class_ids)) != num_classes or len(classes["names"]) != num_classes:
            raise DataError("class ids must be distinct and have one name each")
        if frequency is not None:
            classes["frequency"] = list(frequency)
            if problem := frequency_problem(classes["frequency"], num_classes):
                raise DataError(f"frequency {problem}")
        if form not in FORMS:
            raise DataError(f"form is {form!r}; it must be one of {', '.join(map(repr, FORMS))}")
        header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "form": form}
        header["counts"] = self._counts(num_classes)
        if image_root is not None:
            root = os.path.abspath(image_root)
            header["image_root"] = root
            header["image_root_relative"] = os.path.relpath(
                os.path.realpath(root), os.path.realpath(self.path)
            )
        header["has_image_sizes"] = self._sizes_known
        header["has_areas"] = "area" in self._rows
        header["sources"] = [dict(source) for source in sources]
        header["options"] = dict(options or {})
        header["summary"] = dict(summary or {})
        with self._as_data_error():
            _write_json(folder / "classes.json", classes)
            _write_json(folder / "header.json", header)
            assert self._partial is not None
            self._partial.publish()

    def _counts(self, num_classes: int) -> dict[str, int]:
        """Rows of each table, after checking that the columns agree on them."""
        columns = columns_of({COLUMNS[name].group for name in self._rows})
        missing = [name for name in columns if name not in self._rows]
        if missing:
            raise DataError(f"{self.path}: columns not written: {', '.join(missing)}")
        if self._highest_label >= num_classes:
            raise DataError(f"class index {self._highest_label} for {num_classes} classes")
        counts: dict[str, int] = {}
        for name, column in columns.items():
            rows = self._rows[name] - column.extra
            if counts.setdefault(column.rows, rows) != rows:
                raise DataError(f"column {name!r} has {self._rows[name]} rows for {counts}")
        for name, last in self._last.items():
            target = columns[name].target
            if last != counts[target]:
                raise DataError(f"column {name!r} ends at {last}, not at {counts[target]} {target}")
        return {**counts, "classes": num_classes}

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
        return (
            f"the disk is full ({free / 1e6:.1f} MB free at {folder}); make room, or choose another --output"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        where = error.filename or folder
        return f"{error.strerror} ({where}); make the folder writable, or choose another --output"
    return f"{error.strerror or error}"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
        _flush(file)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _to_bytes(values: np.ndarray | Sequence[str]) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind == "S":
        return array
    if array.dtype.kind not in "UO" and array.size:
        raise DataError(f"a text column has type {array.dtype}")
    return np.array([str(value).encode() for value in array.tolist()], dtype=np.bytes_)


def _looks_like_store(path: Path) -> bool:
    return path.is_dir() and ((path / "header.json").is_file() or not any(path.iterdir()))
