"""A CSV of images and the labels of each whole image to an annotation store."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longtail_det2.data.datasets.coco import CocoReport, quote_names, read_coco_hierarchy, write_checked
from longtail_det2.data.datasets.coco_checks import KINDS as COCO_KINDS
from longtail_det2.data.datasets.coco_checks import CocoImages, check_image_files, file_below
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.issues import Issues, Kind
from longtail_det2.data.open_images_csv import read_header
from longtail_det2.data.store import AnnotationStore, ImageLabel, rows_per_class
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.ragged import offsets_of
from longtail_det2.utils.wording import printable

KINDS = {
    "image_file": COCO_KINDS["image_file"],
    "cells": Kind("rows of another length than the header", "quote cells with commas; complete a cut file"),
    "file_name": Kind("images without a usable name", "it must be a path below the image folder"),
    "repeated_image": Kind("images listed more than once", "give each one row, with all its labels"),
    "unknown_class": Kind("labels that are no classes", "correct them, or add them to the classes"),
    "contradiction": Kind("labels both present and absent in an image", "keep one of the two"),
    "repeated_label": Kind("labels that stand in a row twice", "they count once", "warning"),
    "cut_end": Kind("last lines without a line end", "is the file complete?", "warning"),
    "other_column": Kind("columns that are not read", "only image, labels and absent are", "warning"),
    "own_classes": Kind(
        "classes, in alphabetical order, for want of --classes",
        "other splits need the same list: give them this store as --classes",
        "warning",
    ),
    "added_class": COCO_KINDS["added_class"],
    "unused_class": Kind("classes that no image has", "they cannot be learnt from these data", "warning"),
    "empty_image": Kind("images without labels", "right where no class is present", "warning"),
}
_SEPARATORS = "|;, \t/"
_TRUTH = {"0", "1", "0.0", "1.0"}
_EXAMPLE = "wanted are the names of an image's classes: image,labels in line 1, then 0001.jpg,dog|person"


class ClassList(NamedTuple):
    """Classes in the order of their indices."""

    ids: list[str]
    names: list[str]
    hierarchy: LabelHierarchy | None = None

    def index(self) -> dict[str, int]:
        """Class index by id, and by name where it is the name of one class alone."""
        single = {name for name, count in Counter(self.names).items() if count == 1}
        index = {name: place for place, name in enumerate(self.names) if name in single}
        return index | {key: place for place, key in enumerate(self.ids)}


class _Row(NamedTuple):
    line: int
    image: str
    present: str
    absent: str


def prepare_image_labels(
    csv_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    report: Callable[[CocoReport], object] | None = None,
    **options: Any,
) -> AnnotationStore:
    """Make an annotation store without objects, for classifiers of images.

    The file has a header with the columns `image` (a path below the image folder) and `labels`. Classes that
    an image does not list are absent from it; with a column `absent`, which lists those verified absent, they
    are unverified.

    Args:
        csv_file: the labels.
        image_root: folder of the images.
        output: directory of the store; a store that is there is replaced.
        report: called once, before anything is written, with what was found.
        **options: see `check_image_labels`.

    Raises:
        DataError: anything wrong with the files (the first entry is named, the others are counted) or with
            the place of the store.
        HierarchyError: the hierarchy does not fit.
        ConfigError: the separator is empty.
    """
    found = check_image_labels(csv_file, image_root, **options)
    given = {"image_labels": csv_file, **{role: options.get(role) for role in ("classes", "hierarchy")}}
    files = [(role, Path(file)) for role, file in given.items() if file is not None]
    files = [(role, file / "classes.json" if file.is_dir() else file) for role, file in files]
    settings = {"separator": options.get("separator", "|"), "skip_bad": options.get("skip_bad", False)}
    return write_checked(found, output, report, files, options=settings, image_root=image_root)


def check_image_labels(
    csv_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | None = None,
    hierarchy: str | os.PathLike[str] | None = None,
    separator: str = "|",
    skip_bad: bool = False,
    workers: int = 1,
) -> CocoReport:
    """What `prepare_image_labels` would say of a file, without making a store.

    Args:
        csv_file: the labels.
        image_root: folder of the images.
        classes: a CSV with a column `name` or `id` or both, a text file with one class a line, or a store
            (its hierarchy counts too, if no other is given). None: the labels of the file, alphabetically.
        hierarchy: see `prepare_coco`.
        separator: what stands between two labels.
        skip_bad: leave bad rows and labels out instead of refusing the file.
        workers: processes that read image headers.

    Raises:
        DataError: the files cannot be read, or there is no such image folder.
        HierarchyError: the hierarchy does not fit.
        ConfigError: the separator is empty.
    """
    if not separator:
        raise ConfigError("--separator is empty: give the character between two labels, such as '|'")
    path, issues = Path(csv_file), Issues(Path(csv_file), KINDS, skip_bad)
    _refuse_matrix(path)
    columns, rows = read_rows(path, ("image", "labels"), ("absent",), issues)
    other = [name for name in columns if name not in ("image", "labels", "absent")]
    issues.add("other_column", quote_names(other), len(other))
    table = _check_images(rows, os.path.abspath(image_root), issues)
    if classes is None:
        names = _alphabetical(path, table, separator)
        issues.add("own_classes", quote_names(names), len(names))
        known = ClassList(names, names)
    else:
        known = read_class_list(Path(classes))
    tree = known.hierarchy
    if hierarchy is not None:
        tree = read_coco_hierarchy(Path(hierarchy), known.ids, known.names, skip_bad=skip_bad)
        added = tree.class_ids[len(known.ids) :]
        issues.add("added_class", quote_names(added), len(added))
        known = ClassList([*known.ids, *added], [*known.names, *added])
    labels = _to_classes(table, known, separator, issues)
    images = images_by_name({row.image: one for row, one in zip(table, labels, strict=True)})
    check_image_files(images, Path(image_root), issues, workers)
    return image_label_report(images, known._replace(hierarchy=tree), issues, "absent" not in columns)


def images_by_name(labels: Mapping[str, dict[int, int]], suffix: str = "") -> CocoImages:
    """Images of unknown sizes from {image id: {class index: `ImageLabel`}}; files are the id and a suffix."""
    ids = sorted(labels, key=str.encode)
    sizes, keep = np.zeros((len(ids), 2), np.int32), np.ones(len(ids), dtype=bool)
    return CocoImages(ids, [key + suffix for key in ids], sizes, [labels[key] for key in ids], keep)


def image_label_report(
    images: CocoImages, classes: ClassList, issues: Issues, exhaustive: bool
) -> CocoReport:
    """Describe the images to keep and their labels, as columns of a store without objects.

    Raises:
        DataError: no image is left.
    """
    if not images.keep.any():
        issues.raise_errors()
        raise DataError(f"{issues.source}: no image is left")
    columns = images.columns()
    columns["object_offsets"] = np.zeros(len(columns["image_id"]) + 1, np.int64)
    columns |= {"box": np.zeros((0, 4), np.float32), "flags": np.zeros(0, np.uint8)}
    columns |= {"label_offsets": np.zeros(1, np.int64), "label": np.zeros(0, np.int32)}
    present = columns["image_label_status"] != int(ImageLabel.ABSENT)
    rows = np.repeat(np.arange(len(columns["image_id"])), np.diff(columns["image_label_offsets"]))
    per_image = np.bincount(rows[present], minlength=len(columns["image_id"]))
    tree = classes.hierarchy or LabelHierarchy.flat(classes.ids)
    counts = rows_per_class(offsets_of(per_image), columns["image_label"][present], tree)
    empty = [one.decode() for one in columns["image_id"][per_image == 0]]
    unused = [name for name, count in zip(classes.names, counts.tolist(), strict=True) if count == 0]
    for kind, some in (("empty_image", empty), ("unused_class", unused)):
        issues.add(kind, quote_names(some), len(some))
    summary = {
        "images": len(per_image),
        "images_left_out": len(images.ids) - len(per_image),
        "images_with_several_labels": int(np.count_nonzero(per_image > 1)),
        "labels_present": int(np.count_nonzero(present)),
        "labels_verified_absent": int(np.count_nonzero(~present)),
        "classes": len(classes.ids),
        "images_of_the_most_frequent_class": int(counts.max(initial=0)),
        "images_of_the_rarest_class": min(counts[counts > 0].tolist(), default=0),
    }
    content = {
        "columns": columns,
        "class_ids": classes.ids,
        "class_names": classes.names,
        "form": "image_labels",
        "exhaustive_labels": exhaustive,
        "parents": None if classes.hierarchy is None else classes.hierarchy.to_parents(),
    }
    return CocoReport(issues, summary, content)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with their ends.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8; is the file damaged? Save text as UTF-8") from None
    return io.StringIO(text, newline="").readlines()


def read_rows(
    path: Path, names: Sequence[str], optional: Sequence[str], issues: Issues
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV whose header has the columns `names`, and may have `optional` and others.

    Returns:
        The header, and (line, {column: text without spaces around it}) of each row; `issues` takes rows of
        another length.

    Raises:
        DataError: it cannot be read, is no CSV file, or lacks a column.
    """
    header = [name.strip() for name in read_header(path, names, optional)]
    lines = read_lines(path)
    if not lines[-1].endswith(("\n", "\r")):
        issues.add("cut_end", printable(lines[-1], most=80))
    rows = []
    for line, cells in _cells(path, lines):
        if len(cells) != len(header):
            issues.add("cells", f"line {line}: {len(cells)} cells where the header has {len(header)}")
        else:
            rows.append((line, dict(zip(header, map(str.strip, cells), strict=True))))
    return header, rows[1:]


def _cells(path: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank."""
    reader = csv.reader(lines, strict=True)
    try:
        yield from ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a row of a CSV file ({error})") from None


def read_class_list(path: Path) -> ClassList:
    """Read classes: of a store, a CSV with a column `name` or `id`, or a text file with one class a line.

    Raises:
        DataError: it cannot be read, or a class is listed twice.
    """
    if path.is_dir():
        store = AnnotationStore(path)
        hierarchy = store.hierarchy if store.has_hierarchy else None
        return ClassList(list(store.class_ids), list(store.class_names), hierarchy)
    lines = read_lines(path)
    header = {cell.strip() for cell in ",".join(lines[:1]).split(",")}
    columns = [name for name in ("id", "name") if name in header]
    if columns or path.suffix.lower() == ".csv":
        issues = Issues(
            path, {"cells": KINDS["cells"]._replace(severity="error"), "cut_end": KINDS["cut_end"]}
        )
        _, rows = read_rows(path, columns or ["name"], (), issues)
        issues.raise_errors()
        listed = [(line, cells[(columns or ["name"])[0]], cells.get("name", "")) for line, cells in rows]
    else:
        listed = [(line, text.strip(), "") for line, text in enumerate(lines, 1) if text.strip()]
    classes: dict[str, str] = {}
    for line, key, name in listed:
        if not key or key in classes:
            problem = f"class {key!r} is listed twice" if key else "the class has no name"
            raise DataError(f"{path}, line {line}: {problem}; one line for each class is needed")
        classes[key] = name or key
    if not classes:
        raise DataError(f"{path}: has no classes; one line for each class is needed")
    return ClassList(list(classes), list(classes.values()))


def _refuse_matrix(path: Path) -> None:
    """Refuse a file that has 0 or 1 for each class, in columns or in one cell."""
    head = [cells for _, cells in itertools.islice(_cells(path, read_lines(path)), 100)]
    rows = [re.findall(r"[^\s|;,\[\]]+", " ".join(cells[1:])) for cells in head[1:]]
    least = 2 + ("labels" in head[0]) if head else 0
    if rows and set(itertools.chain(*rows)) <= _TRUTH and max(map(len, rows)) >= least:
        raise DataError(f"{path}, line 2: has 0 or 1 for each class; {_EXAMPLE}")


def _check_images(rows: Sequence[tuple[int, dict[str, str]]], root: str, issues: Issues) -> list[_Row]:
    """The rows of images with usable names, the first of each image."""
    unique: dict[str, _Row] = {}
    for line, cells in rows:
        name = os.path.normpath(file_below(root, cells["image"]) or ".")
        if name == ".":
            issues.add("file_name", f"line {line}: the image is {cells['image']!r}")
        elif name in unique:
            issues.add("repeated_image", f"line {line}: {name!r} is in line {unique[name].line}, too")
        else:
            unique[name] = _Row(line, name, cells["labels"], cells.get("absent", ""))
    return list(unique.values())


def _split(text: str, separator: str) -> list[str]:
    return [word for part in text.split(separator) if (word := part.strip())]


def _alphabetical(path: Path, rows: Sequence[_Row], separator: str) -> list[str]:
    """The labels of the file; refuses some that are several labels each, by the look of them."""
    labels = {word for row in rows for text in row[2:] for word in _split(text, separator)}
    if not labels:
        raise DataError(f"{path}: no image has a label; {_EXAMPLE}")
    if not any(separator in text for row in rows for text in row[2:]):
        for other in _SEPARATORS:
            parts = {word for label in labels for word in _split(label, other)}
            if any(other in label for label in labels) and len(parts) < len(labels) + (other not in " /"):
                label = min(label for label in labels if other in label)
                raise DataError(
                    f"{path}: {label!r} and others look like several labels; do you mean --separator "
                    f"{other!r}? If each is one label, give a list of --classes"
                )
    return sorted(labels)


def _to_classes(
    rows: Sequence[_Row], classes: ClassList, separator: str, issues: Issues
) -> list[dict[int, int]]:
    """Of each row {class index: `ImageLabel`}."""
    index, result = classes.index(), []
    for row in rows:
        found: dict[int, set[int]] = {}
        for text, status in ((row.present, ImageLabel.PRESENT), (row.absent, ImageLabel.ABSENT)):
            for label, count in Counter(_split(text, separator)).items():
                issues.add("repeated_label", f"line {row.line}: {label!r}", count - 1)
                if label in index:
                    found.setdefault(index[label], set()).add(int(status))
                else:
                    guess = "" if issues.count("unknown_class") else _guess(label, index)
                    issues.add("unknown_class", f"line {row.line}: {label!r}{guess}")
        both = [classes.names[place] for place, status in found.items() if len(status) > 1]
        issues.add("contradiction", f"line {row.line}: {quote_names(both)}", len(both))
        result.append({place: min(found[place]) for place in sorted(found) if len(found[place]) == 1})
    return result


def _guess(label: str, index: Mapping[str, int]) -> str:
    """What a label that is no class may have been meant to be."""
    for other in _SEPARATORS:
        if other in label and all(word in index for word in _split(label, other)):
            return f" (do you mean --separator {other!r}?)"
    close = difflib.get_close_matches(label, index, n=1)
    return f" (do you mean {close[0]!r}?)" if close else ""
