"""The columns of an annotation store and their atomic writer (layout: `longtail_det2.data.store`)."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
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
"""LVIS's groups of classes: rare, common, frequent."""


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


@dataclass(frozen=True)
class Column:
    """What a column holds: its attribute of `AnnotationStore`, its type, and what it has one row for."""

    attribute: str
    dtype: str  # a NumPy dtype, "S" for bytes of any width, "class" for a class index
    rows: str
    extra: int = 0
    width: tuple[int, ...] = ()


COLUMNS = {
    "image_id": Column("image_ids", "S", "images"),
    "file_name": Column("file_names", "S", "images"),
    "image_size": Column("image_sizes", "<i4", "images", width=(2,)),
    "object_offsets": Column("object_offsets", "<i8", "images", extra=1),
    "box": Column("boxes", "<f4", "objects", width=(4,)),
    "flags": Column("flags", "|u1", "objects"),
    "label_offsets": Column("label_offsets", "<i8", "objects", extra=1),
    "label": Column("labels", "class", "labels"),
    "image_label_offsets": Column("image_label_offsets", "<i8", "images", extra=1),
    "image_label": Column("image_labels", "class", "image_labels"),
    "image_label_status": Column("image_label_status", "|u1", "image_labels"),
}
"""Columns that every store has."""
MASK_COLUMNS = {
    "polygon_offsets": Column("polygon_offsets", "<i8", "objects", extra=1),
    "vertex_offsets": Column("vertex_offsets", "<i8", "polygons", extra=1),
    "vertex": Column("vertices", "<f4", "vertices", width=(2,)),
    "run_offsets": Column("run_offsets", "<i8", "objects", extra=1),
    "run": Column("runs", "|u1", "run_bytes"),
}
"""Columns that a store with masks has too: all of them, or none."""
AREA_COLUMNS = {"area": Column("areas", "<f8", "objects")}
"""The column that a store of annotations with areas has too."""
_ALL_COLUMNS = {**COLUMNS, **MASK_COLUMNS, **AREA_COLUMNS}
_OFFSETS = {
    "object_offsets": "objects",
    "label_offsets": "labels",
    "image_label_offsets": "image_labels",
    "polygon_offsets": "polygons",
    "vertex_offsets": "vertices",
    "run_offsets": "run_bytes",
}


class AnnotationStoreWriter:
    """Writes a store column by column, atomically; a context manager.

    ::

        with AnnotationStoreWriter(path) as writer:
            writer.add("image_id", ids)  # every column of the module's docstring, in any order
            writer.finish(class_ids, class_names)

    Leaving the block without `finish` removes what was written. Temporary directories of dead runs beside
    `path` are removed on entry.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._partial: PartialFolder | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._last: dict[str, int] = {}
        self._highest_label = -1
        self._sizes_known = True

    def __enter__(self) -> "AnnotationStoreWriter":
        with self._explaining():
            return self._enter()

    def _enter(self) -> "AnnotationStoreWriter":
        if self.path.exists() and not _looks_like_store(self.path):
            raise DataError(
                f"{self.path} exists and is no annotation store: remove it or choose another place"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = PartialFolder(self.path)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._partial is not None:
            self._partial.remove()
            self._partial = None

    def add(self, name: str, values: np.ndarray) -> None:
        """Write one column.

        Args:
            name: column of `longtail_det2.data.store`'s docstring.
            values: array whose type casts safely in kind to the column's; strings may be `str` arrays.

        Raises:
            DataError: unknown column, wrong shape, offsets that do not ascend from 0, boxes or vertices
                that are not finite, areas that are not positive, or the disk is full.
        """
        if self._partial is None:
            raise DataError("use AnnotationStoreWriter as a context manager")
        if name not in _ALL_COLUMNS:
            raise DataError(f"unknown column {name!r}; the columns are {', '.join(_ALL_COLUMNS)}")
        column = _ALL_COLUMNS[name]
        values = _to_bytes(values) if column.dtype == "S" else np.asarray(values)
        if values.ndim != 1 + len(column.width) or values.shape[1:] != column.width:
            raise DataError(f"column {name!r} has shape {values.shape}, not (rows, *{column.width})")
        self._check(name, values)
        if column.dtype == "class":
            values = values.astype("<i2" if values.size == 0 or values.max() < 2**15 else "<i4", copy=False)
        elif column.dtype != "S":
            values = values.astype(column.dtype, copy=False)
        self._shapes[name] = values.shape
        with self._explaining(values.nbytes), open(self._partial.folder / f"{name}.npy", "wb") as file:
            np.save(file, values, allow_pickle=False)
            _flush(file)

    def _check(self, name: str, values: np.ndarray) -> None:
        if name in _OFFSETS:
            if values.size == 0 or values[0] != 0 or np.any(values[1:] < values[:-1]):
                raise DataError(f"column {name!r} must ascend from 0")
            self._last[name] = int(values[-1])
        elif _ALL_COLUMNS[name].dtype == "class" and values.size:
            if int(values.min()) < 0:
                raise DataError(f"column {name!r} has the negative class index {values.min()}")
            self._highest_label = max(self._highest_label, int(values.max()))
        elif name in ("box", "vertex") and not np.isfinite(values).all():
            raise DataError(f"column {name!r} has coordinates that are not finite")
        elif name == "area" and not (np.isnan(values) | ((values > 0) & np.isfinite(values))).all():
            raise DataError(f"column {name!r} has areas that are neither positive nor unknown (NaN)")
        elif name == "image_size":
            self._sizes_known = bool((values > 0).all())
        elif name == "image_id" and values.size and np.any(values[1:] <= values[:-1]):
            raise DataError("column 'image_id' must ascend, each id once")
        elif name == "image_label_status" and values.size:
            lowest, highest = int(values.min()), int(values.max())
            if lowest < 0 or highest > max(ImageLabel):
                wrong = lowest if lowest < 0 else highest
                raise DataError(f"column {name!r} has the value {wrong}; 0, 1 and 2 have a meaning")

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
            frequency: K letters of `FREQUENCIES`; None means that the classes have no such groups.
            image_root: folder that the file names are relative to.
            sources: one {"path", "size", "sha256", ...} per source file.
            options: what else the content depends on (JSON values).
            summary: counts worth keeping (JSON values).

        Raises:
            DataError: a column is missing, the columns or the class lists disagree, or the disk is full.
        """
        if self._partial is None:
            raise DataError("use AnnotationStoreWriter as a context manager")
        class_ids = list(class_ids)
        names = list(class_names) if class_names is not None else class_ids
        if len(set(class_ids)) != len(class_ids) or len(names) != len(class_ids):
            raise DataError("class ids must be distinct and have one name each")
        if frequency is not None:
            frequency = list(frequency)
            problem = frequency_problem(frequency, len(class_ids))
            if problem:
                raise DataError(f"frequency {problem}")
        if form not in FORMS:
            raise DataError(f"form is {form!r}; it must be one of {', '.join(map(repr, FORMS))}")
        counts = self._counts(len(class_ids))
        classes = {
            "ids": class_ids,
            "names": names,
            "hierarchy": None if parents is None else {child: list(ids) for child, ids in parents.items()},
        }
        if frequency is not None:
            classes["frequency"] = frequency
        header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "form": form, "counts": counts}
        if image_root is not None:
            root = os.path.abspath(image_root)
            header["image_root"] = root
            header["image_root_relative"] = os.path.relpath(
                os.path.realpath(root), os.path.realpath(self.path)
            )
        header["has_image_sizes"] = self._sizes_known
        header["has_areas"] = "area" in self._shapes
        header["sources"] = [dict(source) for source in sources]
        header["options"] = dict(options or {})
        header["summary"] = dict(summary or {})
        with self._explaining():
            _write_json(self._partial.folder / "classes.json", classes)
            _write_json(self._partial.folder / "header.json", header)
            self._partial.publish()

    def _counts(self, num_classes: int) -> dict[str, int]:
        has_masks = any(name in self._shapes for name in MASK_COLUMNS)
        has_areas = "area" in self._shapes
        columns = {**COLUMNS, **(MASK_COLUMNS if has_masks else {}), **(AREA_COLUMNS if has_areas else {})}
        missing = [name for name in columns if name not in self._shapes]
        if missing:
            raise DataError(f"{self.path}: columns not written: {', '.join(missing)}")
        if self._highest_label >= num_classes:
            raise DataError(f"class index {self._highest_label} for {num_classes} classes")
        counts = {"images": self._shapes["image_id"][0], "objects": self._shapes["box"][0]}
        counts["labels"] = self._shapes["label"][0]
        counts["image_labels"] = self._shapes["image_label"][0]
        if has_masks:
            counts["polygons"] = self._shapes["vertex_offsets"][0] - 1
            counts["vertices"] = self._shapes["vertex"][0]
            counts["run_bytes"] = self._shapes["run"][0]
        for name, column in columns.items():
            if self._shapes[name][0] != counts[column.rows] + column.extra:
                raise DataError(f"column {name!r} has {self._shapes[name][0]} rows for {counts}")
        for name, target in _OFFSETS.items():
            if name in columns and self._last[name] != counts[target]:
                raise DataError(
                    f"column {name!r} ends at {self._last[name]}, not at {counts[target]} {target}"
                )
        return {**counts, "classes": num_classes}

    @contextmanager
    def _explaining(self, size: int = 0) -> Iterator[None]:
        """Turns what the file system refuses into a DataError that says what to do.

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


def frequency_problem(frequency: object, num_classes: int) -> str:
    """What is wrong with a list of frequencies, to follow its name; "" if nothing is."""
    if not isinstance(frequency, list) or len(frequency) != num_classes:
        found = f"has {len(frequency)} entries" if isinstance(frequency, list) else "is no list"
        return f"{found}, but there are {num_classes} classes"
    for index, one in enumerate(frequency):
        if one not in FREQUENCIES:
            return f"of class {index} is {one!r}; it must be one of {', '.join(map(repr, FREQUENCIES))}"
    return ""


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
