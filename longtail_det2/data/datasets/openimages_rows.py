"""Box rows and image-label rows of Open Images CSV files as NumPy columns, checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longtail_det2.data.datasets.openimages_csv import TEXT, CsvStream
from longtail_det2.data.store import ObjectFlag

COORDINATE_TOLERANCE = 1e-6
_FLAG_COLUMNS = {
    "IsOccluded": ObjectFlag.OCCLUDED,
    "IsTruncated": ObjectFlag.TRUNCATED,
    "IsGroupOf": ObjectFlag.GROUP_OF,
    "IsDepiction": ObjectFlag.DEPICTION,
    "IsInside": ObjectFlag.INSIDE,
}
_BOX_COLUMNS = {
    "ImageID": TEXT,
    "LabelName": TEXT,
    "XMin": pa.float32(),
    "YMin": pa.float32(),
    "XMax": pa.float32(),
    "YMax": pa.float32(),
}
_OPTIONAL_BOX_COLUMNS = dict.fromkeys(_FLAG_COLUMNS, pa.int8())
_IMAGE_LABEL_COLUMNS = {"ImageID": TEXT, "LabelName": TEXT, "Confidence": pa.float32()}


@dataclass
class LabelTable:
    """Class indices by label name, and what to do about labels that are not in it.

    Attributes:
        indices: {class id: class index}.
        path: the class descriptions, for messages.
        on_unknown: "error" or "skip" (rows of unknown labels are left out and counted).
        unknown: {label: rows left out}.
    """

    indices: Mapping[str, int]
    path: Path
    on_unknown: Literal["error", "skip"] = "error"
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Smallest of int16 and int32 that holds every class index."""
        return np.dtype(np.int16 if len(self.indices) < 2**15 else np.int32)

    def encode(self, labels: pa.DictionaryArray, stream: CsvStream, first: int) -> np.ndarray:
        """Class index of each row, -1 for an unknown label that is to be skipped: (rows,) of type `dtype`.

        Args:
            labels: column LabelName of one batch.
            stream: where it is from.
            first: number of the batch's first record in the file.

        Raises:
            DataError: an unknown label, with its line, unless such rows are to be skipped.
        """
        names = labels.dictionary.to_pylist()
        table = np.array([self.indices.get(name, -1) for name in names], dtype=self.dtype)
        codes = labels.indices.to_numpy()
        classes = table[codes]
        if len(table) and table.min() < 0 and len(classes):
            self._note_unknown(codes, table, names, stream, first)
        return classes

    def _note_unknown(
        self, codes: np.ndarray, table: np.ndarray, names: list[str], stream: CsvStream, first: int
    ) -> None:
        unknown = table[codes] < 0
        if not unknown.any():
            return
        if self.on_unknown == "error":
            row = int(np.argmax(unknown))
            stream.fail(
                first + row,
                f"label {names[codes[row]]!r} is not among the {len(self.indices)} classes of {self.path}; "
                "give the class descriptions of this release, or leave such rows out with "
                "--on-unknown-label skip",
            )
        counts = np.bincount(codes[unknown], minlength=len(names))
        for code in np.flatnonzero(counts):
            self.unknown[names[code]] = self.unknown.get(names[code], 0) + int(counts[code])


@dataclass
class BoxRows:
    """Box rows of all files, in file order.

    Attributes:
        image: dictionary-encoded image ids, one array per block.
        label: (r,) int16 or int32 class indices.
        box: (r, 4) float32 (x0, y0, x1, y1), shares of width and height in [0, 1].
        flags: (r,) uint8 bits of `ObjectFlag`.
        num_bad: rows left out, or cut at the border, because of their coordinates.
    """

    image: list[pa.DictionaryArray]
    label: np.ndarray
    box: np.ndarray
    flags: np.ndarray
    num_bad: int


@dataclass
class ImageLabelRows:
    """Image-label rows of all files, in file order.

    Attributes:
        image: dictionary-encoded image ids, one array per block.
        label: (q,) int16 or int32 class indices.
        positive: (q,) bool, verified present (else verified absent).
        num_below: machine labels left out because of their confidence.
    """

    image: list[pa.DictionaryArray]
    label: np.ndarray
    positive: np.ndarray
    num_below: int


class _Growing:
    """A column that grows in place: lists of blocks would need twice its memory when they are joined."""

    def __init__(self, dtype: np.dtype[Any], width: tuple[int, ...] = ()) -> None:
        self._values = np.empty((0, *width), dtype)
        self._rows = 0

    def append(self, values: np.ndarray) -> None:
        """Add rows at the end."""
        rows = self._rows + len(values)
        if rows > len(self._values):
            # No view of the array exists outside, so that it may be moved.
            self._values.resize((rows + rows // 8, *self._values.shape[1:]), refcheck=False)
        self._values[self._rows : rows] = values
        self._rows = rows

    def finish(self) -> np.ndarray:
        """The column."""
        self._values.resize((self._rows, *self._values.shape[1:]), refcheck=False)
        return self._values


@dataclass(frozen=True)
class _Batch:
    """Some rows of a file: all columns, checked image ids, class indices (-1 for rows to leave out)."""

    columns: pa.RecordBatch
    stream: CsvStream
    first: int
    image: pa.DictionaryArray
    label: np.ndarray


def _batches(
    streams: Iterable[CsvStream], labels: LabelTable, sources: list[dict[str, Any]]
) -> Iterator[_Batch]:
    """All files batch by batch; each file's description is added to `sources` at its end."""
    for stream in streams:
        first = 0
        for columns in stream:
            image = _image_column(columns, stream, first)
            yield _Batch(columns, stream, first, image, labels.encode(columns["LabelName"], stream, first))
            first += len(columns)
        sources.append(stream.source)


def read_box_rows(
    paths: Sequence[Path],
    labels: LabelTable,
    on_bad_box: Literal["error", "skip", "clip"],
    advance: Callable[[int], object],
) -> tuple[BoxRows, list[dict[str, Any]]]:
    """Read box CSVs of any Open Images release.

    Args:
        paths: files; XMin, YMin, XMax, YMax are shares of width and height; flags may be absent or -1: unset.
        labels: class indices.
        on_bad_box: coordinates that are not finite, inverted or outside [0, 1] by more than 1e-6: "error";
            "skip" leaves the row out; "clip" cuts the box at the image's border and leaves it out if nothing
            remains.
        advance: called with bytes read.

    Returns:
        The rows, and one source description per file.

    Raises:
        DataError: what cannot be read, with file and line.
    """
    images: list[pa.DictionaryArray] = []
    columns = _Growing(labels.dtype), _Growing(np.dtype(np.float32), (4,)), _Growing(np.dtype(np.uint8))
    sources: list[dict[str, Any]] = []
    num_bad = 0
    streams = (CsvStream(path, _BOX_COLUMNS, _OPTIONAL_BOX_COLUMNS, advance) for path in paths)
    for batch in _batches(streams, labels, sources):
        image, label = batch.image, batch.label
        box = np.empty((len(label), 4), dtype=np.float32)
        for index, name in enumerate(("XMin", "YMin", "XMax", "YMax")):
            box[:, index] = batch.columns[name].to_numpy(zero_copy_only=False)
        flags = _flag_bits(batch.columns, batch.stream, batch.first)
        keep = label >= 0
        num_bad += _check_boxes(box, keep, on_bad_box, batch.stream, batch.first)
        if not keep.all():
            image, label, box, flags = image.filter(pa.array(keep)), label[keep], box[keep], flags[keep]
        images.append(image)
        for column, values in zip(columns, (label, box, flags), strict=True):
            column.append(values)
    label, box, flags = (column.finish() for column in columns)
    return BoxRows(images, label, box, flags, num_bad), sources


def read_image_label_rows(
    paths: Sequence[Path],
    labels: LabelTable,
    machine_label_threshold: float | None,
    advance: Callable[[int], object],
) -> tuple[ImageLabelRows, list[dict[str, Any]]]:
    """Read image-label CSVs of any Open Images release.

    Args:
        paths: files; Confidence 1 means verified present, 0 verified absent.
        labels: class indices.
        machine_label_threshold: a fractional confidence (a machine's label, verified by nobody) counts as
            present from this value on, else the row is left out; None refuses such rows.
        advance: called with bytes read.

    Returns:
        The rows, and one source description per file.

    Raises:
        DataError: what cannot be read, with file and line.
    """
    images: list[pa.DictionaryArray] = []
    columns = _Growing(labels.dtype), _Growing(np.dtype(bool))
    sources: list[dict[str, Any]] = []
    num_below = 0
    streams = (CsvStream(path, _IMAGE_LABEL_COLUMNS, None, advance) for path in paths)
    for batch in _batches(streams, labels, sources):
        confidence = batch.columns["Confidence"].to_numpy(zero_copy_only=False)
        keep = _check_confidence(confidence, machine_label_threshold, batch.stream, batch.first)
        num_below += int(np.count_nonzero(~keep))
        keep &= batch.label >= 0
        images.append(batch.image if keep.all() else batch.image.filter(pa.array(keep)))
        columns[0].append(batch.label[keep])
        columns[1].append(confidence[keep] > 0)
    return ImageLabelRows(images, columns[0].finish(), columns[1].finish(), num_below), sources


def index_images(*columns: list[pa.DictionaryArray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image index of each row of several dictionary-encoded columns, by ascending id.

    Args:
        *columns: each a list of dictionary-encoded id arrays with dictionaries of their own.

    Returns:
        ((n,) bytes of the ids that occur, ascending; per column (rows,) int32 indices into them).
    """
    chunks = [chunk for column in columns for chunk in column]
    if not chunks:
        return np.empty(0, dtype="S1"), [np.empty(0, dtype=np.int32) for _ in columns]
    unified = pa.chunked_array(chunks).unify_dictionaries().chunks
    ids = _fixed_bytes(unified[0].dictionary)
    codes = []
    for column in columns:
        parts, unified = unified[: len(column)], unified[len(column) :]
        codes.append(np.concatenate([np.empty(0, np.int32), *(part.indices.to_numpy() for part in parts)]))
    used = np.zeros(len(ids), dtype=bool)
    for column in codes:
        used[column] = True
    order = _argsort_bytes(ids)
    order = order[used[order]]
    rank = np.full(len(ids), -1, dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return ids[order], [rank[column] for column in codes]


def _image_column(batch: pa.RecordBatch, stream: CsvStream, first: int) -> pa.DictionaryArray:
    image = batch["ImageID"]
    empty = pc.index(image.dictionary, "").as_py()
    if empty >= 0:
        stream.fail(first + int(np.argmax(image.indices.to_numpy() == empty)), "ImageID is empty")
    damaged = pc.call_function("match_substring", [image.dictionary], pc.MatchSubstringOptions("\0"))
    zero = pc.index(damaged, True).as_py()
    if zero >= 0:
        row = int(np.argmax(image.indices.to_numpy() == zero))
        stream.fail(first + row, "ImageID holds a zero byte; is the file damaged?")
    return image


def _flag_bits(batch: pa.RecordBatch, stream: CsvStream, first: int) -> np.ndarray:
    bits = np.zeros(len(batch), dtype=np.uint8)
    for name, flag in _FLAG_COLUMNS.items():
        if name not in stream.found:
            continue
        column = batch[name]
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            stream.fail(first + row, f"column {name} is empty; is the file complete?")
        values = column.to_numpy()
        if len(values) and not (values.min() >= -1 and values.max() <= 1):
            row = int(np.argmax(np.abs(values) > 1))
            stream.fail(first + row, f"column {name} holds {values[row]}; flags are 1, 0 or -1 (unknown)")
        bits |= (values == 1).view(np.uint8) * np.uint8(flag)
    return bits


def _check_boxes(
    box: np.ndarray,
    keep: np.ndarray,
    on_bad_box: Literal["error", "skip", "clip"],
    stream: CsvStream,
    first: int,
) -> int:
    """Repair `box` and clear `keep` of rows to leave out, both in place; returns the number of bad rows."""
    inside = len(box) == 0 or (box.min() >= 0 and box.max() <= 1)  # NaN fails both
    if inside and bool((box[:, 2:] >= box[:, :2]).all()):
        return 0
    lost = ~np.isfinite(box).all(axis=1)
    size = box[:, 2:] - box[:, :2]
    lost |= (size < -COORDINATE_TOLERANCE).any(axis=1)
    outside = ((box < -COORDINATE_TOLERANCE) | (box > 1 + COORDINATE_TOLERANCE)).any(axis=1)
    bad = (lost | outside) & keep
    if on_bad_box == "error" and bad.any():
        row = int(np.argmax(bad))
        x0, y0, x1, y1 = (f"{value:.7g}" for value in box[row].tolist())
        stream.fail(
            first + row,
            f"bad box XMin={x0} XMax={x1} YMin={y0} YMax={y1}: coordinates are shares of the image in [0, 1] "
            "with XMin <= XMax and YMin <= YMax; correct them, or use --on-bad-box skip or clip",
        )
    np.clip(box, 0, 1, out=box)
    empty = (box[:, 2:] <= box[:, :2]).any(axis=1)
    np.maximum(box[:, 2:], box[:, :2], out=box[:, 2:])
    keep &= ~(lost | (outside & (empty if on_bad_box == "clip" else True)))
    return int(np.count_nonzero(bad))


def _check_confidence(
    confidence: np.ndarray, threshold: float | None, stream: CsvStream, first: int
) -> np.ndarray:
    """Rows to keep: (rows,) bool."""
    human = (confidence == 0) | (confidence == 1)
    if human.all():
        return human
    bad = ~((confidence >= 0) & (confidence <= 1))
    if threshold is None:
        bad = ~human
    if bad.any():
        row = int(np.argmax(bad))
        stream.fail(
            first + row,
            f"Confidence is {confidence[row]:.7g}; human labels have 1 (present) or 0 (absent), machine "
            "labels lie between: take those with --machine-label-threshold, or give the human-imagelabels "
            "file",
        )
    return human | (confidence >= (1.0 if threshold is None else threshold))


def _fixed_bytes(strings: pa.StringArray) -> np.ndarray:
    """Strings as NumPy bytes, without a Python object for each."""
    if len(strings) == 0:
        return np.empty(0, dtype="S1")
    ends = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset :][: len(strings) + 1]
    width = max(1, int(np.diff(ends).max()))
    padding = pc.PadOptions(width, "\0")
    padded = pc.call_function("ascii_rpad", [strings], padding).cast(pa.binary()).cast(pa.binary(width))
    return np.frombuffer(padded.buffers()[1], dtype=f"S{width}")[padded.offset : padded.offset + len(padded)]


def _argsort_bytes(values: np.ndarray) -> np.ndarray:
    """Stable argsort of bytes, eight of them at a time as one big-endian number (several times faster)."""
    words = -(-values.dtype.itemsize // 8)
    numbers = values.astype(f"S{8 * words}").view(">u8").reshape(len(values), words).astype(np.uint64)
    return np.lexsort(numbers.T[::-1])
