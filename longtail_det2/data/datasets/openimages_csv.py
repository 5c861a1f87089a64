"""Streaming reader of Open Images CSV files: columns by header name, block by block, errors with a line."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import describe_status

BLOCK_BYTES = 8 << 20
TEXT = pa.dictionary(pa.int32(), pa.string())


class _HashingFile(io.RawIOBase):
    """A file whose bytes are hashed, and reported, as they are read: no second pass over gigabytes."""

    def __init__(self, path: Path, advance: Callable[[int], object]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._advance = advance
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size) or b""
        self.hash.update(data)
        self._advance(len(data))
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class CsvStream:
    """The wanted columns of one CSV file, as record batches in file order.

    Columns are found by the header's names, in any order; other columns are ignored.

    Attributes:
        path: the file.
        found: names of the wanted columns that the file has.
    """

    def __init__(
        self,
        path: Path,
        required: Mapping[str, pa.DataType],
        optional: Mapping[str, pa.DataType] | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Read the header line.

        Args:
            path: CSV file with a header line, UTF-8.
            required: {column: type}; `TEXT` for strings, which come dictionary-encoded.
            optional: columns that may be absent.
            advance: called with the number of bytes of each read, from a reader thread.

        Raises:
            DataError: no such file, no header, a required column is absent or a wanted one is there twice.
        """
        self.path = Path(path)
        self._advance = advance
        self._types = {**required, **(optional or {})}
        header = self._read_header()
        names = [name.strip() for name in header]
        missing = [name for name in required if name not in names]
        if missing:
            raise DataError(
                f"{self.path}, line 1: column {', '.join(missing)} is missing; "
                f"the header has {_shown(', '.join(names))}"
            )
        self.found = [name for name in self._types if name in names]
        for name in self.found:
            if names.count(name) > 1:
                raise DataError(f"{self.path}, line 1: column {name} occurs {names.count(name)} times")
        self._header = header
        self._raw = {name: header[names.index(name)] for name in self.found}
        self._source: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        raw_names = [self._raw[name] for name in self.found]
        options = pa_csv.ConvertOptions(
            include_columns=raw_names,
            column_types={self._raw[name]: self._types[name] for name in self.found},
            null_values=[""],
            strings_can_be_null=False,
        )
        status = os.stat(self.path)
        with _HashingFile(self.path, self._advance) as file:
            try:
                read_options = pa_csv.ReadOptions(block_size=BLOCK_BYTES)
                for batch in pa_csv.open_csv(file, read_options=read_options, convert_options=options):
                    yield pa.RecordBatch.from_arrays(batch.columns, names=self.found)
            except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
                self._explain(error)
            while file.read(BLOCK_BYTES):
                pass
            digest = file.hash.hexdigest()
        self._source = describe_status(self.path, status, digest)

    @property
    def source(self) -> dict[str, Any]:
        """{"path", "size", "mtime_ns", "sha256"} of the file, once it has been read to its end."""
        if self._source is None:
            raise RuntimeError(f"{self.path} has not been read to its end")
        return self._source

    def fail(self, record: int, problem: str) -> NoReturn:
        """Raise a DataError that names the file and the line of a record.

        Args:
            record: 0-based number of the data record (the header does not count).
            problem: what is wrong there, and what to do.
        """
        with open(self.path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file)
            records = (cells for cells in reader if cells)
            with suppress(csv.Error):  # of a cell that never ends, say: the line before is near enough
                for _ in range(record + 2):
                    next(records, None)
            raise DataError(f"{self.path}, line {reader.line_num}: {problem}")

    def _read_header(self) -> list[str]:
        try:
            with open(self.path, newline="", encoding="utf-8-sig", errors="replace") as file:
                header = next((cells for cells in csv.reader(file) if cells), None)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        except csv.Error as error:
            raise DataError(f"{self.path}: is no CSV file ({error})") from None
        if header is None:
            raise DataError(f"{self.path}: is empty; a CSV file with a header line is needed")
        return header

    def _explain(self, error: Exception) -> NoReturn:
        """Find the line that the fast reader stumbled over and raise a DataError about it."""
        columns = {name: self._header.index(self._raw[name]) for name in self.found}
        with open(self.path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file)
            records = (cells for cells in reader if cells)
            problem = None
            try:
                next(records, None)
                for cells in records:
                    problem = self._problem(cells, columns)
                    if problem:
                        break
            except csv.Error as csv_error:
                problem = str(csv_error)
            if reader.line_num <= 1:
                problem = "the header has no line end"
            if problem:
                problem = _shown(problem)
                hint = "" if "complete" in problem else "; is the file complete, and a CSV file?"
                raise DataError(f"{self.path}, line {reader.line_num}: {problem}{hint}") from None
        raise DataError(f"{self.path}: {error}") from None

    def _problem(self, cells: list[str], columns: Mapping[str, int]) -> str | None:
        if len(cells) != len(self._header):
            return (
                f"{len(cells)} cells where the header has {len(self._header)}; "
                "is the file complete (an interrupted download)?"
            )
        for name, index in columns.items():
            cell = cells[index]
            if "�" in cell:
                return f"column {name} is not UTF-8: {cell[:80]!r}"
            if self._types[name] == TEXT or cell == "":
                continue
            integer = pa.types.is_integer(self._types[name])
            if not _is_number(cell, integer):
                return (
                    f"column {name} holds {cell[:80]!r} instead of {'an integer' if integer else 'a number'}"
                )
        return None


def read_class_descriptions(path: Path) -> tuple[list[str], list[str]]:
    """Class ids and display names, in file order (the class order of everything that follows).

    The file has no header line (one that says `LabelName,DisplayName` is skipped); cells after the second are
    ignored; a class without a name is called by its id.

    Raises:
        DataError: unreadable or empty file, an empty id, an id that occurs twice.
    """
    ids: list[str] = []
    names: list[str] = []
    lines: dict[str, int] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if not cells or (reader.line_num == 1 and cells[0].strip() == "LabelName"):
                    continue
                label = cells[0].strip()
                if not label:
                    raise DataError(f"{path}, line {reader.line_num}: the class id is empty")
                if label in lines:
                    where = f"lines {lines[label]} and {reader.line_num}"
                    raise DataError(f"{path}, {where}: class {label!r} occurs twice")
                lines[label] = reader.line_num
                ids.append(label)
                names.append((cells[1].strip() if len(cells) > 1 else "") or label)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no UTF-8 CSV file ({error})") from None
    if not ids:
        raise DataError(f"{path}: has no classes; a line per class is needed: LabelName,DisplayName")
    return ids, names


def _shown(text: str, most: int = 200) -> str:
    """A text from a file that may be damaged, fit for one line."""
    line = "".join(char if char.isprintable() else "?" for char in text[:most])
    return line + " ..." * (len(text) > most)


def _is_number(cell: str, integer: bool) -> bool:
    try:
        value = float(cell)
    except ValueError:
        return False
    return "_" not in cell and (not integer or (math.isfinite(value) and "." not in cell))
