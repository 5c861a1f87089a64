"""Open Images CSV files: boxes, image labels, image sizes, predictions and class lists.

Columns are found by the header's names, in any order; other columns are ignored. Files are read block by
block into NumPy columns. What cannot be read (no file or column, cut rows, cells that are not numbers) is a
`DataError` of each reader at once, rows whose content cannot be used go to `longtail_det2.data.issues`; both
name file and line.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from longtail_det2.data.issues import Issues, Kind
from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import printable

_BLOCK_BYTES = 8 << 20
_NO_IMAGES: Any = pa.array([], pa.string()).dictionary_encode()
_BOX = ("XMin", "YMin", "XMax", "YMax")  # the order of the arrays
_BAD_BOX = "bad box XMin={0:.7g} XMax={2:.7g} YMin={1:.7g} YMax={3:.7g}"
_FLAGS = {"Is" + str(flag.name).title().replace("_", ""): flag for flag in ObjectFlag}  # such as IsGroupOf
_CUT_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_CONVERSION = re.compile(
    r"In CSV column #(\d+): Row #(\d+): .* to (\w+): invalid (?:value '(.*)'|UTF8)", re.DOTALL
)
_KINDS = {
    "unknown_label": Kind(
        "rows whose label is not among the classes",
        "give the class descriptions of this release, or leave such rows out with --on-unknown-label skip",
        "error",
    ),
    "bad_box": Kind(
        "bad boxes", "coordinates are shares of the image, with 0 <= XMin <= XMax <= 1, and so YMin and YMax"
    ),
    "machine_label": Kind(
        "image labels that nobody verified",
        "Confidence is 1 (verified present) or 0 (verified absent): give the human-imagelabels file",
    ),
}


def csv_issues(
    on_unknown_label: Literal["error", "skip"] = "error", skip_bad: bool = False, **kinds: Kind
) -> Issues:
    """Issues of CSV rows, and of further kinds; rows with unknown labels are an error or left out."""
    known = _KINDS | kinds
    if on_unknown_label == "skip":
        known["unknown_label"] = known["unknown_label"]._replace(advice="left out", severity="warning")
    return Issues("", known, skip_bad)


class _Block(NamedTuple):
    """Some rows of a file: the wanted columns, and the number of the first row."""

    path: Path
    first: int
    columns: dict[str, pa.Array]

    def numbers(self, name: str) -> np.ndarray:
        """A column; NaN where a cell is empty."""
        return self.columns[name].to_numpy(zero_copy_only=False)

    def box(self) -> np.ndarray:
        """(rows, 4): (x0, y0, x1, y1)."""
        return np.stack([self.numbers(name) for name in _BOX], axis=1)

    def labels(self, classes: pa.Array, issues: Issues) -> np.ndarray:
        """Class index of each row; -1 for unknown labels, which are noted."""
        words: Any = self.columns["LabelName"]
        label = _find_texts([words], classes).astype(np.int16 if len(classes) < 2**15 else np.int32)
        problem = f"is not among the {len(classes)} classes"
        self.note(issues, "unknown_label", label < 0, lambda row: f"label {words[row].as_py()!r} {problem}")
        return label

    def select(self, keep: np.ndarray, *columns: np.ndarray) -> tuple[Any, ...]:
        """Image ids, which are checked, and some columns of the rows to keep."""
        images: Any = self.columns["ImageID"]
        pattern = pc.MatchSubstringOptions(r"^$|\x00")
        found = pc.call_function("match_substring_regex", [images.dictionary], pattern)
        if (place := pc.index(found, True).as_py()) >= 0:
            row = int(np.argmax(images.indices.to_numpy() == place))
            where = _where(self.path, self.first + row)
            raise DataError(f"{where}: ImageID is empty or holds a zero byte; is the file damaged?")
        return images if keep.all() else images.filter(pa.array(keep)), *(column[keep] for column in columns)

    def note(self, issues: Issues, kind: str, bad: np.ndarray, describe: Callable[[int], str]) -> None:
        """Note the rows where `bad` is set; the first one of its kind in words."""
        if bad.any():
            row = int(np.argmax(bad))
            where = "" if issues.count(kind) else f"{_where(self.path, self.first + row)}: {describe(row)}"
            issues.add(kind, where, int(np.count_nonzero(bad)))

    def require(self, good: np.ndarray, name: str, expected: str) -> None:
        """Refuse the first row of a column that is not good."""
        if not good.all():
            row = int(np.argmin(good))
            value = self.columns[name][row].as_py()
            held = "is empty" if value is None else f"holds {value:.7g}"
            raise DataError(f"{_where(self.path, self.first + row)}: column {name} {held}; {expected}")

    def flags(self) -> np.ndarray:
        """(rows,) uint8 bits of `ObjectFlag`."""
        bits = np.zeros(len(self.columns["LabelName"]), dtype=np.uint8)
        for name, flag in _FLAGS.items():
            if name in self.columns:
                values = self.numbers(name)
                one = values == 1
                self.require(one | (values == 0) | (values == -1), name, "flags are 1, 0 or -1 (unknown)")
                bits |= one.view(np.uint8) * np.uint8(flag)
        return bits


def read_header(path: Path, names: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Cells of the header line, in which `names` occur once and `optional` ones once at most."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            line = next((one for one in iter(lambda: file.readline(1 << 20), "") if one != "\n"), "")
        header = next(csv.reader([line]), [])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise DataError(f"{path}, line 1: not a header of a CSV file ({error})") from None
    if not line:
        raise DataError(f"{path}: is empty; a header with {', '.join(names)} is needed")
    found = [name.strip() for name in header]
    problem = ""
    if not line.endswith("\n"):
        problem = "the header has no line end; is the file complete?"
    elif missing := [name for name in names if name not in found]:
        problem = f"column {', '.join(missing)} is missing; the header has {printable(', '.join(found))}"
    elif twice := [name for name in (*names, *optional) if found.count(name) > 1]:
        problem = f"column {twice[0]} occurs {found.count(twice[0])} times"
    if problem:
        raise DataError(f"{path}, line 1: {problem}")
    return header


def _read_blocks(
    paths: Sequence[str | Path], names: Sequence[str], number: Any, optional: Sequence[str] = ()
) -> Iterator[_Block]:
    """All rows of all files, in order; columns of numbers have the type `number`, empty cells are null."""
    texts = {"ImageID": _NO_IMAGES.type, "LabelName": pa.string()}
    read = pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)  # else errors lack the row
    for path in map(Path, paths):
        header, first = read_header(path, names, optional), 0
        wanted = {raw: name for raw in header if (name := raw.strip()) in (*names, *optional)}
        types = {raw: texts.get(name, pa.from_numpy_dtype(number)) for raw, name in wanted.items()}
        convert = pa_csv.ConvertOptions(
            include_columns=list(types), column_types=types, null_values=[""], strings_can_be_null=False
        )
        with open(path, "rb") as file:
            try:
                for batch in pa_csv.open_csv(file, read, convert_options=convert):
                    yield _Block(path, first, dict(zip(wanted.values(), batch.columns, strict=True)))
                    first += len(batch)
            except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
                raise _explain(str(error), path, header) from None


def _explain(error: str, path: Path, header: Sequence[str]) -> DataError:
    """What stopped pyarrow, whose rows count from 1 with the header."""
    # (pyarrow's handler of cut rows gives the same numbers, but fails on rows that are not UTF-8.)
    if match := _CUT_ROW.search(error):
        row, wanted, cells = match.groups()
        problem = f"{cells} cells where the header has {wanted}; is the file complete?"
    elif match := _CONVERSION.search(error):
        column, row, kind, value = match.groups()
        number = f"holds {printable(value or '', 80)!r} instead of a number"
        problem = "is not UTF-8" if kind == "string" else number
        problem = f"column {header[int(column)].strip()} {problem}; is the file damaged?"
    else:
        return DataError(f"{path}: {printable(error)}; is it a complete CSV file?")
    return DataError(f"{_where(path, int(row) - 2)}: {problem}")


def _where(path: Path, record: int) -> str:
    """File and line of a data record, counted from 0."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        records = (cells for cells in reader if cells)
        with suppress(csv.Error):  # of a huge cell, say: the line before is near enough
            next(itertools.islice(records, record, None), None)  # the header, and the records before
        blank = sum(1 for _ in itertools.takewhile(lambda line: not line.strip("\r\n"), file))
        return f"{path}, line {reader.line_num + blank + 1}"


def read_boxes(
    paths: Sequence[str | Path], class_ids: Sequence[str], issues: Issues, *, within: bool = True
) -> tuple[list[pa.DictionaryArray], np.ndarray, np.ndarray, np.ndarray]:
    """Read box CSVs: columns ImageID, LabelName, XMin, XMax, YMin, YMax, and flags (absent: unset).

    `issues` takes rows with unknown labels and bad boxes, which are left out: not finite, inverted or, if
    they must lie `within` the image, outside [0, 1] by more than 1e-6 (by less: they are cut).

    Returns:
        Image ids of each block, see `index_images`; for all rows that are kept, in file order: class indices
        (r,) int16 or int32; boxes (r, 4) (x0, y0, x1, y1), shares of width and height, float32 or, if not
        `within`, float64; and flags (r,) uint8, bits of `ObjectFlag`.
    """
    classes, dtype = pa.array(class_ids, pa.string()), np.float32 if within else np.float64
    slack, low, high = (1e-6, -1e-6, 1 + 1e-6) if within else (0.0, -np.inf, np.inf)
    kept = [(_NO_IMAGES, np.empty(0, np.int16), np.empty((0, 4), dtype), np.empty(0, np.uint8))]
    for block in _read_blocks(paths, ("ImageID", "LabelName", *_BOX), dtype, tuple(_FLAGS)):
        box, flags, label = block.box(), block.flags(), block.labels(classes, issues)
        good = np.isfinite(box) & (box >= low) & (box <= high)
        good[:, :2] &= box[:, 2:] - box[:, :2] >= -slack
        known, sound = label >= 0, good.all(axis=1)
        block.note(issues, "bad_box", known & ~sound, lambda row, box=box: _BAD_BOX.format(*box[row]))
        if within:
            np.clip(box, 0, 1, out=box)
            np.maximum(box[:, 2:], box[:, :2], out=box[:, 2:])
        kept.append(block.select(known & sound, label, box, flags))
    return _join(kept)


def read_image_labels(
    paths: Sequence[str | Path], class_ids: Sequence[str], issues: Issues
) -> tuple[list[pa.DictionaryArray], np.ndarray, np.ndarray]:
    """Read image-label CSVs: columns ImageID, LabelName, Confidence (1 verified present, 0 verified absent).

    `issues` takes rows with unknown labels or a fractional confidence (a machine's label, verified by
    nobody), which are left out.

    Returns:
        Image ids and class indices as `read_boxes`; (q,) bool: present, else absent.
    """
    classes = pa.array(class_ids, pa.string())
    kept = [(_NO_IMAGES, np.empty(0, np.int16), np.empty(0, bool))]
    for block in _read_blocks(paths, ("ImageID", "LabelName", "Confidence"), np.float32):
        value, label = block.numbers("Confidence"), block.labels(classes, issues)
        block.require((value >= 0) & (value <= 1), "Confidence", "it must lie in [0, 1]")
        verified, known = (value == 0) | (value == 1), label >= 0
        unsure = known & ~verified
        block.note(issues, "machine_label", unsure, lambda row, v=value: f"Confidence is {v[row]:.7g}")
        kept.append(block.select(known & verified, label, value > 0))
    return _join(kept)


def read_predictions(
    path: str | Path, class_ids: Sequence[str], image_ids: Sequence[str], issues: Issues
) -> tuple[dict[str, np.ndarray], int]:
    """Read scored boxes: columns ImageID, LabelName, Score, XMin, XMax, YMin, YMax; all must be finite.

    Returns:
        {"image", "cls" (n,) integers, "score" (n,), "box" (n, 4) float64} of known images and classes; and
        the number of rows of other images.
    """
    classes = pa.array(class_ids, pa.string())
    kept = [(_NO_IMAGES, np.empty(0, np.int16), np.empty(0), np.empty((0, 4)))]
    for block in _read_blocks([path], ("ImageID", "LabelName", "Score", *_BOX), np.float64):
        for name in ("Score", *_BOX):
            block.require(np.isfinite(block.numbers(name)), name, "a finite number is needed")
        label = block.labels(classes, issues)
        kept.append(block.select(label >= 0, label, block.numbers("Score"), block.box()))
    images, label, score, box = _join(kept)
    image = _find_texts(images, pa.array(image_ids, pa.string()))
    known = image >= 0
    rows = {"image": image[known], "cls": label[known], "score": score[known], "box": box[known]}
    return rows, int(np.count_nonzero(~known))


def read_classes(path: str | Path) -> tuple[list[str], list[str]]:
    """Read class ids and display names, in file order (the class order of everything that follows).

    The file has no header line (one that says `LabelName,DisplayName` is skipped); cells after the second are
    ignored, spaces around names too; a class without a name is called by its id.
    """
    names: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                label, name = (cell.strip() for cell in (*cells, "", "")[:2])
                if not cells or (reader.line_num == 1 and label == "LabelName"):
                    continue
                if not label or label in names:
                    problem = f"class {label!r} is listed twice" if label else "the class id is empty"
                    raise DataError(f"{path}, line {reader.line_num}: {problem}")
                names[label] = name or label
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error})") from None
    if not names:
        raise DataError(f"{path}: has no classes; a line per class is needed: LabelName,DisplayName")
    return list(names), list(names.values())


def index_images(*columns: list[pa.DictionaryArray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image index of each row of several columns of image ids, by ascending id; the columns are emptied.

    Returns:
        ((n,) bytes of the ids that occur, ascending; per column (rows,) int32 indices into them).
    """
    lengths = [sum(map(len, column)) for column in columns]
    chunks: Any = list(itertools.chain(*columns))
    for column in columns:
        column.clear()
    chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
    ids = np.array(chunks[0].dictionary.cast(pa.binary()).to_pylist(), dtype=np.bytes_)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    used = np.flatnonzero(np.bincount(codes, minlength=len(ids)))
    used = used[np.argsort(ids[used])]
    place = np.empty(len(ids), dtype=np.int32)
    place[used] = np.arange(len(used))
    return ids[used], np.split(place[codes], np.cumsum(lengths)[:-1])


def _find_texts(texts: list[Any], known: pa.Array) -> np.ndarray:
    """Index of each text among known ones, -1 for others: int32."""
    places = pc.call_function("index_in", [pa.chunked_array(texts)], pc.SetLookupOptions(known))
    return places.fill_null(-1).to_numpy()


def _join(blocks: list[tuple[Any, ...]]) -> Any:
    """List of the image ids, and all other columns of the blocks as arrays."""
    images, *columns = zip(*blocks, strict=True)
    return list(images), *map(np.concatenate, columns)
