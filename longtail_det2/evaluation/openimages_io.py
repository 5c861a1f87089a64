"""Open Images evaluation files <-> arrays of the metric.

CSV columns are found by header name, in any order; other columns are ignored. Files are streamed in blocks,
so that memory depends on the arrays and not on the text. The fast path never looks at single lines; when it
meets something wrong, the file is read once more, line by line, to name the line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.evaluation.openimages_metric import Detections, GroundTruth
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer

__all__ = [
    "ground_truth_from_store",
    "read_classes",
    "read_detections",
    "read_ground_truth",
    "write_detections",
]

OnUnknownLabel = Literal["error", "skip"]
PREDICTION_COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")
"""Columns of the challenge's prediction files; coordinates are normalised by the image's width and height."""

_BOX_COLUMNS = ("XMin", "YMin", "XMax", "YMax")  # the order of the arrays
_BLOCK_BYTES = 8 << 20
_ROWS_PER_WRITE = 1 << 16


def read_classes(path: str | Path) -> tuple[list[str], list[str]]:
    """Reads a class description file: `LabelName,DisplayName` rows, with or without this header.

    Further columns are ignored; the display name may be absent (it is then the label).

    Returns:
        K class ids and K display names in the order of the file.

    Raises:
        DataError: the file is absent or empty, a row has no label, or a label occurs twice.
    """
    ids: list[str] = []
    names: list[str] = []
    seen: dict[str, int] = {}
    for line, row in _rows(Path(path)):
        label = row[0].strip() if row else ""
        if line == 1 and label == "LabelName":
            continue
        if not label:
            raise DataError(f"{path}, line {line}: no label in the first column")
        if label in seen:
            raise DataError(f"{path}, line {line}: label {label!r} was already given in line {seen[label]}")
        seen[label] = line
        ids.append(label)
        names.append(row[1] if len(row) > 1 else label)
    if not ids:
        raise DataError(f"{path}: no classes; expected rows of LabelName,DisplayName")
    return ids, names


def read_ground_truth(
    boxes: str | Path,
    image_labels: str | Path | None,
    class_ids: Sequence[str],
    on_unknown_label: OnUnknownLabel = "error",
) -> tuple[GroundTruth, list[str], dict[str, int]]:
    """Reads a box CSV and a human image-label CSV, as released (not expanded) or expanded beforehand.

    Args:
        boxes: CSV with ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf (1; 0 and -1 mean no).
        image_labels: CSV with ImageID, LabelName, Confidence (1 present, 0 absent); or None.
        class_ids: the K classes.
        on_unknown_label: what to do with rows of other classes.

    Returns:
        The ground truth; the image ids in sorted order, which its image indices refer to; counts of rows
        skipped for their label, by kind of file.

    Raises:
        DataError: a missing file or column, a malformed cell, an unknown label, with file and line.
    """
    images = _Codes()
    box_table = _Table(Path(boxes), _BOX_CELLS, class_ids, images, on_unknown_label)
    box_rows = box_table.read()
    label_rows = _Table.empty(_LABEL_CELLS)
    skipped = {"boxes": box_table.skipped}
    if image_labels is not None:
        label_table = _Table(Path(image_labels), _LABEL_CELLS, class_ids, images, on_unknown_label)
        label_rows = label_table.read()
        skipped["image_labels"] = label_table.skipped
    ids = images.names()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), dtype=np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    truth = GroundTruth(
        image=rank[box_rows["image"]],
        cls=box_rows["cls"],
        box=box_rows["box"],
        group_of=box_rows["IsGroupOf"] == 1,
        label_image=rank[label_rows["image"]],
        label_cls=label_rows["cls"],
        label_present=label_rows["Confidence"] == 1,
    )
    return truth, [ids[i] for i in order], skipped


def ground_truth_from_store(store: AnnotationStore) -> GroundTruth:
    """Ground truth of a store as annotated (not expanded): one box for each label of an object.

    Image indices are those of the store; boxes are normalised.
    """
    images = np.arange(len(store), dtype=np.int32)
    image_of_object = np.repeat(images, np.diff(store.object_offsets))
    objects = np.repeat(np.arange(store.num_objects), np.diff(store.label_offsets))
    return GroundTruth(
        image=image_of_object[objects],
        cls=np.asarray(store.labels),
        box=store.boxes[objects],
        group_of=(store.flags[objects] & int(ObjectFlag.GROUP_OF)) != 0,
        label_image=np.repeat(images, np.diff(store.image_label_offsets)),
        label_cls=np.asarray(store.image_labels),
        label_present=store.image_label_status != 0,
    )


def read_detections(
    path: str | Path,
    class_ids: Sequence[str],
    image_ids: Sequence[str],
    on_unknown_label: OnUnknownLabel = "error",
) -> tuple[Detections, dict[str, int]]:
    """Reads predictions in the challenge's CSV form (`PREDICTION_COLUMNS`).

    Rows of images that are not in `image_ids` are not kept: the metric never reads them.

    Returns:
        The detections with indices into `image_ids` and `class_ids`; counts of the rows left out
        ("unknown_label", "unknown_image").

    Raises:
        DataError: a missing file or column, a malformed cell, an unknown label, with file and line.
    """
    table = _Table(Path(path), _PREDICTION_CELLS, class_ids, _Codes(image_ids), on_unknown_label)
    rows = table.read()
    detections = Detections(rows["image"], rows["cls"], rows["Score"], rows["box"])
    return detections, {"unknown_label": table.skipped, "unknown_image": table.other_images}


def write_detections(
    path: str | Path, detections: Detections, class_ids: Sequence[str], image_ids: Sequence[str]
) -> None:
    """Writes detections in the challenge's CSV form; `read_detections` reads it.

    Numbers are written with as many digits as their type needs to be recovered exactly. The file appears
    under its name only when it is complete.

    Args:
        path: file to write; its folder must exist.
        detections: boxes XYXY normalised to [0, 1].
        class_ids: name of each class index.
        image_ids: name of each image index.
    """
    images, labels = pa.array(image_ids, pa.string()), pa.array(class_ids, pa.string())
    options = pyarrow.csv.WriteOptions(include_header=False)
    with atomic_writer(path, "wb") as stream:
        stream.write((",".join(PREDICTION_COLUMNS) + "\n").encode())
        for start in range(0, len(detections), _ROWS_PER_WRITE):
            rows = slice(start, start + _ROWS_PER_WRITE)
            x0, y0, x1, y1 = (np.ascontiguousarray(detections.box[rows, i]) for i in range(4))
            columns = [
                images.take(pa.array(detections.image[rows].astype(np.int64))),
                labels.take(pa.array(detections.cls[rows].astype(np.int64))),
                *(pa.array(column) for column in (detections.score[rows], x0, x1, y0, y1)),
            ]
            pyarrow.csv.write_csv(pa.table(columns, names=list(PREDICTION_COLUMNS)), stream, options)


class _Codes:
    """Numbers for names: grows with new names, or (given names) answers -1 for others."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._grows = names is None
        self._index = {name: i for i, name in enumerate(names or ())}

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def names(self) -> list[str]:
        return list(self._index)

    def encode(self, column: pa.DictionaryArray) -> np.ndarray:
        """(n,) int32 codes."""
        index = self._index
        words = column.dictionary.to_pylist()
        if self._grows:
            codes = [index.setdefault(word, len(index)) for word in words]
        else:
            codes = [index.get(word, -1) for word in words]
        return np.array(codes, dtype=np.int32)[column.indices.to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class _Cell:
    """What a numeric column may hold: any finite number, or one of a few values."""

    expected: str
    allowed: tuple[float, ...] | None = None

    def valid(self, values: np.ndarray) -> bool:
        """Checks a block of the column."""
        checked = np.isfinite(values) if self.allowed is None else np.isin(values, self.allowed)
        return bool(checked.all())

    def problem(self, text: str) -> str | None:
        """What is wrong with one cell; None if nothing."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        sound = math.isfinite(value) if self.allowed is None else value in self.allowed
        return None if sound else f"expected {self.expected}"


_NUMBER = _Cell("a finite number")
_CONFIDENCE = "1 (verified present) or 0 (verified absent); machine-generated labels are not verified labels"
_BOX_CELLS = {
    **dict.fromkeys(_BOX_COLUMNS, _NUMBER),
    "IsGroupOf": _Cell("1, 0 or -1 (unknown)", allowed=(-1.0, 0.0, 1.0)),
}
_LABEL_CELLS = {"Confidence": _Cell(_CONFIDENCE, allowed=(0.0, 1.0))}
_PREDICTION_CELLS = {"Score": _NUMBER, **dict.fromkeys(_BOX_COLUMNS, _NUMBER)}


class _Table:
    """One CSV with the columns ImageID and LabelName and some numeric ones, read by blocks."""

    def __init__(
        self,
        path: Path,
        cells: Mapping[str, _Cell],
        class_ids: Sequence[str],
        images: _Codes,
        on_unknown_label: OnUnknownLabel,
    ) -> None:
        if on_unknown_label not in ("error", "skip"):
            raise DataError(f"on_unknown_label must be 'error' or 'skip', not {on_unknown_label!r}")
        self.path, self.cells, self.images = path, cells, images
        self.labels = _Codes(class_ids)
        self.check_labels = on_unknown_label == "error"
        self.inverted_boxes = "IsGroupOf" not in cells  # detections may be inverted, annotations may not
        self.skipped = 0
        self.other_images = 0

    @staticmethod
    def empty(cells: Mapping[str, _Cell]) -> dict[str, np.ndarray]:
        """What `read` returns for a file without rows."""
        columns = {name: np.zeros(0) for name in cells if name not in _BOX_COLUMNS}
        codes = {"image": np.zeros(0, dtype=np.int32), "cls": np.zeros(0, dtype=np.int32)}
        return codes | columns | ({"box": np.zeros((0, 4))} if "XMin" in cells else {})

    def read(self) -> dict[str, np.ndarray]:
        """Arrays "image" and "cls" (n,) int32, "box" (n, 4) float64 XYXY, and the other columns by name."""
        names = ["ImageID", "LabelName", *self.cells]
        self._check_header(names)
        blocks: list[dict[str, np.ndarray]] = []
        try:
            with pyarrow.csv.open_csv(
                self.path,
                read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=False),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=names,
                    column_types={n: pa.float64() if n in self.cells else pa.string() for n in names},
                    null_values=[],
                ),
            ) as reader:
                blocks.extend(self._block(batch) for batch in reader)
        except pa.ArrowInvalid as error:
            self._explain(names, str(error))
        if not blocks:
            return self.empty(self.cells)
        # One column after the other, so that only one of them exists twice at a time.
        return {name: np.concatenate([block.pop(name) for block in blocks]) for name in list(blocks[0])}

    def _check_header(self, names: Sequence[str]) -> None:
        header = next((row for _, row in _rows(self.path)), None)
        if header is None:
            raise DataError(f"{self.path}: empty file; expected a header with {', '.join(names)}")
        missing = [name for name in names if name not in header]
        if missing:
            raise DataError(
                f"{self.path}: no column {', '.join(missing)} in the header; found: {', '.join(header)[:200]}"
            )
        repeated = [name for name in names if header.count(name) > 1]
        if repeated:
            raise DataError(f"{self.path}: column {repeated[0]} occurs {header.count(repeated[0])} times")

    def _block(self, batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        columns: dict[str, Any] = {name: batch.column(name).to_numpy() for name in self.cells}
        sound = all(cell.valid(columns[name]) for name, cell in self.cells.items())
        if sound and "XMin" in columns:
            box = np.stack([columns.pop(name) for name in _BOX_COLUMNS], axis=1)
            sound = self.inverted_boxes or bool((box[:, :2] <= box[:, 2:]).all())
            columns["box"] = box
        columns["cls"] = self.labels.encode(batch.column("LabelName").dictionary_encode())
        known = columns["cls"] >= 0
        if not sound or (self.check_labels and not known.all()):
            self._explain(["ImageID", "LabelName", *self.cells], "malformed content")
        columns["image"] = self.images.encode(batch.column("ImageID").dictionary_encode())
        read = columns["image"] >= 0
        self.skipped += int((~known).sum())
        self.other_images += int((known & ~read).sum())
        kept = known & read
        return columns if kept.all() else {name: column[kept] for name, column in columns.items()}

    def _explain(self, names: Sequence[str], otherwise: str) -> None:
        """Finds the first bad line the slow way and raises the error that names it."""
        rows = _rows(self.path)
        header = next(rows)[1]
        for line, row in rows:
            problem = self._problem(dict(zip(header, row, strict=False)), len(header) - len(row), names)
            if problem:
                raise DataError(f"{self.path}, line {line}: {problem}")
        raise DataError(f"{self.path}: {otherwise}")

    def _problem(self, row: Mapping[str, str], lacking: int, names: Sequence[str]) -> str | None:
        if lacking:
            return f"{abs(lacking)} column(s) {'fewer' if lacking > 0 else 'more'} than the header has"
        for name in names:
            problem = self.cells[name].problem(row[name]) if name in self.cells else None
            if problem:
                return f"column {name} is {row[name]!r}, {problem}"
        if not self.inverted_boxes and "XMin" in row:
            for low, high in (("XMin", "XMax"), ("YMin", "YMax")):
                if float(row[low]) > float(row[high]):
                    return f"{low} {row[low]} is greater than {high} {row[high]}"
        if self.check_labels and row["LabelName"] not in self.labels:
            return (
                f"label {row['LabelName']!r} is not in the class list; correct the class list, or skip such "
                "rows (--on-unknown-label skip)"
            )
        return None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the non-empty lines."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
