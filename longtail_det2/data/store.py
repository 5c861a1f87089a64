"""The annotation store: one directory of memory-mapped columns, shared by all workers and ranks.

Layout (n images, m objects, l object labels, q image labels; little-endian `.npy` files)::

    header.json              format, version, form, counts, sources (path, size, sha256), options, summary
    classes.json             {"ids": [...], "names": [...], "hierarchy": {"child": ["parent", ...]} or null,
                             "frequency": ["r", "c", "f", ...] of each class, or null or absent}
    image_id                 (n,)   bytes, UTF-8, ascending
    file_name                (n,)   bytes, UTF-8, relative path below the image root
    image_size               (n, 2) int32, (height, width) in pixels after EXIF orientation; 0 = unknown
    object_offsets           (n+1,) int64, objects of image i are rows [i], [i+1] of the object columns
    box                      (m, 4) float32, (x0, y0, x1, y1) as a share of width and height, in [0, 1]
    flags                    (m,)   uint8, bits of `ObjectFlag`; an unknown flag is an unset bit
    label_offsets            (m+1,) int64
    label                    (l,)   int16 or int32 class indices as annotated, most specific first
    image_label_offsets      (n+1,) int64
    image_label              (q,)   int16 or int32 class indices verified for the whole image
    image_label_status       (q,)   uint8 of `ImageLabel`: 0 = verified absent, 1 = verified present, 2 = the
                                    same, but not all objects of the class have a box

A store with masks has also (p polygons with v vertices; an object has polygons, an RLE or neither)::

    polygon_offsets          (m+1,) int64
    vertex_offsets           (p+1,) int64
    vertex                   (v, 2) float32, (x, y) in pixels
    run_offsets              (m+1,) int64
    run                      (b,)   uint8, COCO's compressed run lengths of the whole image

A store of annotations that say their areas has also::

    area                     (m,)   float64 in pixels, as annotated; NaN where it is not

A store is written into a temporary sibling folder and renamed when complete, so a killed run leaves nothing
that `AnnotationStore` would accept.

What is checked when: opening reads headers and class lists, and compares types, shapes and last offsets of
the columns, which takes milliseconds whatever their size. Values are checked before their first use, once per
process: those of an image, with 4,096 images around it, when `columns_at` is asked for them; a whole column
when it is first taken as an attribute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store_writer import (
    COLUMNS,
    AnnotationStoreWriter,
    ImageLabel,
    ObjectFlag,
    check_rows,
    read_store,
)
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import is_same_file
from longtail_det2.utils.ragged import offsets_of

__all__ = [
    "AnnotationStore",
    "AnnotationStoreWriter",
    "ImageLabel",
    "ObjectFlag",
    "open_if_current",
    "write_store",
]

_CHUNK_ROWS = 1 << 15  # counted at once: their keys fit into a processor's cache
_BLOCK_BITS = 12
_NAMES = {column.attribute: name for name, column in COLUMNS.items()}


class AnnotationStore:
    """Read-only view of an annotation store; every column is a plain `ndarray` over a memory map.

    Attributes:
        path: directory of the store.
        header: content of header.json.
        form: "open_images", "coco", "lvis" or, without objects, "image_labels": the form of the annotations,
            which says how results are judged.
        class_ids, class_names: K identifiers (for example "/m/01g317") and names, in class-index order.
        class_frequencies: K letters "r" (rare), "c" (common) or "f" (frequent), LVIS's frequency bins; None
            where the data have none.
        image_ids, file_names, image_sizes, object_offsets, boxes, flags, label_offsets, labels,
        image_label_offsets, image_labels, image_label_status: the columns (see the module's docstring).
        polygon_offsets, vertex_offsets, vertices, run_offsets, runs: those of the masks, only where
            `has_masks`; `longtail_det2.data.masks` reads them.
        areas: annotated areas of the objects, only where `has_areas`.
    """

    def __init__(
        self, path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None
    ) -> None:
        """Open the store in directory `path`; see the module's docstring for what is checked.

        Args:
            path: directory of the store.
            image_root: folder that the file names are relative to, instead of the one in the header.

        Raises:
            DataError: no store there, an incomplete or damaged one, or one of another format version. The
                columns raise it later where their values are damaged.
        """
        self.path = Path(path)
        self.header, classes, self._columns = read_store(self.path)
        self.form: str = self.header["form"]
        self.class_ids: tuple[str, ...] = tuple(classes["ids"])
        self.class_names: tuple[str, ...] = tuple(classes["names"])
        frequency = classes.get("frequency")
        self.class_frequencies: tuple[str, ...] | None = None if frequency is None else tuple(frequency)
        self._parents: dict[str, list[str]] | None = classes.get("hierarchy")
        self._image_root = None if image_root is None else Path(image_root)
        self._sound = bytearray((len(self) >> _BLOCK_BITS) + 1)

    def __getattr__(self, attribute: str) -> np.ndarray:
        """A column, all of whose values are checked when it is first taken."""
        values = self.__dict__.get("_columns", {}).get(_NAMES.get(attribute))
        if values is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")
        check_rows(self.path, _NAMES[attribute], values, self.header["counts"])
        setattr(self, attribute, values)
        return values

    def columns_at(self, image: int) -> Mapping[str, np.ndarray]:
        """The columns by their names, whose rows of one image are checked.

        Args:
            image: position in the store, not negative.

        Raises:
            DataError: a value of the image, or of one near it, is damaged.
        """
        block = image >> _BLOCK_BITS
        if not self._sound[block]:
            first = block << _BLOCK_BITS
            rows = {"images": (first, min(first + (1 << _BLOCK_BITS), len(self)))}
            for name, values in self._columns.items():
                column = COLUMNS[name]
                begin, end = rows[column.rows]
                part = values[begin : end + column.extra]
                check_rows(self.path, name, part, self.header["counts"])
                if column.target:
                    rows[column.target] = int(part[0]), int(part[-1])
            self._sound[block] = 1
        return self._columns

    def __len__(self) -> int:
        return len(self._columns["image_id"])

    def __repr__(self) -> str:
        counts = self.header["counts"]
        labels = f"{self.num_objects} objects, {counts['labels']} labels"
        if self.form == "image_labels":
            labels = f"{len(self._columns['image_label'])} image labels"
        return (
            f"AnnotationStore({str(self.path)!r}: {len(self)} images, {labels} of {self.num_classes} classes)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return AnnotationStore, (self.path, self._image_root)

    @property
    def num_objects(self) -> int:
        """Number of objects m."""
        return len(self._columns["box"])

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_ids)

    @property
    def has_image_sizes(self) -> bool:
        """Whether every image's height and width are known (else they are 0)."""
        return bool(self.header.get("has_image_sizes", True))

    @property
    def has_masks(self) -> bool:
        """Whether the columns of the masks are there (single objects may still have none)."""
        return "vertex" in self._columns

    @property
    def has_areas(self) -> bool:
        """Whether annotated areas are there (those of single objects may still be unknown)."""
        return "area" in self._columns

    @property
    def exhaustive_labels(self) -> bool:
        """Whether a class that an image does not list, nor an object in it, is absent (else unverified)."""
        known = self.header.get("exhaustive_labels")
        return self.form in ("coco", "image_labels") if known is None else known

    @property
    def has_hierarchy(self) -> bool:
        """Whether the store was made with a hierarchy."""
        return self._parents is not None

    @cached_property
    def image_root(self) -> Path | None:
        """Folder that `file_names` are relative to; None for a store made without images.

        The header keeps it both absolute and relative to the store, so that data and store can move together.
        """
        if self._image_root is not None:
            return self._image_root
        root = self.header.get("image_root")
        if root is not None and not os.path.isdir(root):
            relative = os.path.normpath(self.path.resolve() / self.header.get("image_root_relative", root))
            root = relative if os.path.isdir(relative) else root
        return None if root is None else Path(root)

    @cached_property
    def hierarchy(self) -> LabelHierarchy:
        """Hierarchy of the classes; flat if the store was made without one."""
        if self._parents is None:
            return LabelHierarchy.flat(self.class_ids)
        return LabelHierarchy.from_json(self._parents, self.class_ids)

    @cached_property
    def present_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes in each image, those of its objects and those verified present, as annotated.

        Offsets (n + 1,) int64 and labels: image i has `labels[offsets[i]:offsets[i + 1]]`, ascending, each
        once.
        """
        images = np.arange(len(self))
        present = self.image_label_status != int(ImageLabel.ABSENT)
        rows = [
            np.repeat(images, np.diff(self.label_offsets[self.object_offsets])),
            np.repeat(images, np.diff(self.image_label_offsets))[present],
        ]
        labels = [self.labels, self.image_labels[present]]
        keys = np.unique(np.concatenate(rows) * np.int64(self.num_classes) + np.concatenate(labels))
        rows_, classes = np.divmod(keys, self.num_classes)
        return offsets_of(np.bincount(rows_, minlength=len(self))), classes.astype(np.int32)

    def index_images(self) -> dict[str, int]:
        """Position of each image by its id."""
        return {name.decode(): place for place, name in enumerate(self.image_ids.tolist())}

    def changed_sources(self) -> list[Path]:
        """Annotation files that the store was made of and that have another size now.

        Files that are gone or cannot be read say nothing about the store. Contents are not compared: they may
        be gigabytes, and every process of a run comes here.
        """
        changed = []
        for source in self.header["sources"]:
            with suppress(OSError, KeyError, TypeError, ValueError):
                if os.stat(source["path"]).st_size != source["size"]:
                    changed.append(Path(source["path"]))
        return changed

    def image_counts(self, *, expanded: bool = False) -> np.ndarray:
        """Images per class: (K,) int64, an image counts once for each class that an object of it has.

        With `expanded`, a label's ancestors count too.
        """
        hierarchy = self.hierarchy if expanded else LabelHierarchy.flat(self.class_ids)
        return rows_per_class(self.label_offsets[self.object_offsets], self.labels, hierarchy)


def rows_per_class(offsets: np.ndarray, labels: np.ndarray, hierarchy: LabelHierarchy) -> np.ndarray:
    """How many rows have each class or a descendant of it: (K,) int64.

    Args:
        offsets: (n + 1,); row i has `labels[offsets[i]:offsets[i + 1]]`, where classes may repeat.
        labels: class indices.
        hierarchy: of the K classes.
    """
    num_classes = hierarchy.num_classes
    counts = np.zeros(num_classes, dtype=np.int64)
    dtype = np.int32 if _CHUNK_ROWS * num_classes < 2**31 else np.int64
    for start in range(0, len(offsets) - 1, _CHUNK_ROWS):
        part = offsets[start : start + _CHUNK_ROWS + 1]
        rows = np.repeat(np.arange(len(part) - 1, dtype=dtype), np.diff(part))
        rows, classes = hierarchy.expand(rows, labels[part[0] : part[-1]])
        keys = rows * dtype(num_classes) + classes
        keys.sort()  # np.unique hashes, which takes seven times as long
        distinct = keys[np.diff(keys, prepend=dtype(-1)) > 0]
        counts += np.bincount(distinct % num_classes, minlength=num_classes)
    return counts


def write_store(
    path: str | os.PathLike[str],
    columns: Mapping[str, np.ndarray],
    class_ids: Sequence[str],
    class_names: Sequence[str] | None = None,
    **header: Any,
) -> AnnotationStore:
    """Write all `columns` as one store at `path`, replacing a store that is there, and open it.

    Args:
        path: directory to make.
        columns: {column name: array}, every column of the module's docstring; those of the masks all or none,
            areas as you like.
        class_ids: K identifiers in class-index order.
        class_names: K names; the ids if None.
        **header: `form`, `parents`, `frequency`, `image_root`, `sources`, `options`, `summary` of
            `AnnotationStoreWriter.finish`.

    Raises:
        DataError: columns that are missing or disagree.
    """
    with AnnotationStoreWriter(path) as writer:
        for name, values in columns.items():
            writer.add(name, values)
        writer.finish(class_ids, class_names, **header)
    return AnnotationStore(path)


def open_if_current(
    path: str | os.PathLike[str],
    files: Sequence[tuple[str, str | os.PathLike[str]]],
    options: Mapping[str, Any],
    image_root: str | os.PathLike[str] | None = None,
) -> AnnotationStore | None:
    """Open the store at `path` if it was made of these files with these options; else return None.

    Files of the path, size and modification time in the header are taken for the same; else contents decide.

    Args:
        path: directory of the store.
        files: (role, file) of all sources.
        options: as they were given to the writer.
        image_root: see `AnnotationStore`.

    Raises:
        DataError: a file cannot be read.
    """
    try:
        store = AnnotationStore(path, image_root)
    except DataError:
        return None
    known = sorted(store.header["sources"], key=lambda one: str(one.get("role")))
    wanted = sorted(files, key=lambda one: one[0])
    if store.header["options"] != options or [one.get("role") for one in known] != [one for one, _ in wanted]:
        return None
    same = all(is_same_file(source, file) for source, (_, file) in zip(known, wanted, strict=True))
    return store if same else None
