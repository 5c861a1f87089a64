"""Detections of an evaluation on disk, one folder a process: memory does not grow with the images.

A folder holds one raw little-endian array a column: "image" (i,) int32 positions of the processed images in
their order, "count" (i,) int32 detections of each, "size" (i, 2) int32 height and width of their masks (0
without any); then, image by image, "cls" (n,) int32, "score" (n,) float32, "box" (n, 4) float32 corners in
pixels, and with masks "length" (n,) int32 and "runs", the bytes of COCO's compressed run lengths.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longtail_det2.evaluation.model_outputs import ImageDetections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import PartialFolder

_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("<i4", ()),
    "count": ("<i4", ()),
    "size": ("<i4", (2,)),
    "cls": ("<i4", ()),
    "score": ("<f4", ()),
    "box": ("<f4", (4,)),
    "length": ("<i4", ()),
    "runs": ("|u1", ()),
}
_MASK_COLUMNS = ("length", "runs")
_BUFFER = 1 << 20
"""Bytes of a column that are kept back until they are written."""


@dataclass(frozen=True)
class SpilledPart:
    """What a process tells the others about its folder.

    Attributes:
        folder: absolute path; None if the process had no image.
        rows: entries of each column.
        host: name of the machine.
        rank: of the process.
        not_in_store: outputs of images that the store does not have.
        not_finite: detections that were dropped.
    """

    folder: Path | None
    rows: Mapping[str, int]
    host: str
    rank: int
    not_in_store: int
    not_finite: int


_FINISHED: list[PartialFolder] = []
"""Keeps the locks of this process, while another one reads the folders."""


class DetectionSpill:
    """Writes the detections of one process; the folder is made with the first image."""

    def __init__(self, parent: Path | None, rank: int, *, with_masks: bool) -> None:
        """Writes nothing yet.

        Args:
            parent: where the folder is to be, made if absent; None takes the machine's temporary folder.
            rank: of this process.
            with_masks: keep masks.
        """
        self._parent = Path(tempfile.gettempdir()) if parent is None else parent
        self._rank = rank
        self._names = [name for name in _COLUMNS if with_masks or name not in _MASK_COLUMNS]
        self._folder: Path | None = None
        self._files: dict[str, BinaryIO] = {}
        self._rows = dict.fromkeys(self._names, 0)
        self._cleanup: weakref.finalize | None = None
        self.not_in_store = 0
        self.not_finite = 0

    def add(self, image: int, found: ImageDetections) -> None:
        """Appends the detections of one image.

        Args:
            image: its position.
            found: with masks if they are kept.

        Raises:
            DataError: the disk is full, or the folder cannot be written.
        """
        self.not_finite += found.dropped
        counts = [runs["counts"] for runs in found.runs or ()]
        values: dict[str, Any] = {
            "image": [image],
            "count": [len(found.score)],
            "size": [found.runs[0]["size"] if found.runs else (0, 0)],
            "cls": found.cls,
            "score": found.score,
            "box": found.box,
            "length": [len(one) for one in counts],
            "runs": np.frombuffer(b"".join(counts), dtype=np.uint8),
        }
        with _explaining(self._parent):
            if self._folder is None:
                self._open()
            for name in self._names:
                column = np.asarray(values[name], dtype=_COLUMNS[name][0])
                self._files[name].write(column.tobytes())
                self._rows[name] += len(column)

    def finish(self) -> SpilledPart:
        """Flushes the columns. Who gets the answer also has to remove the folder."""
        with _explaining(self._parent):
            for file in self._files.values():
                file.close()
        if self._cleanup is not None:
            self._cleanup.detach()
            _FINISHED.append(self._partial)
        folder, self._folder = self._folder, None
        return SpilledPart(
            folder, dict(self._rows), socket.gethostname(), self._rank, self.not_in_store, self.not_finite
        )

    def discard(self) -> None:
        """Removes the folder, if there is one that `finish` has not given away."""
        if self._folder is not None and self._cleanup is not None:
            for file in self._files.values():
                file.close()
            self._cleanup()

    def _open(self) -> None:
        parent = self._parent
        parent.mkdir(parents=True, exist_ok=True)
        target = parent.resolve() / "lvis_detections"
        self._partial = PartialFolder(target)
        self._folder = self._partial.folder
        # The process that forks off a worker with this object in it keeps the folder.
        self._cleanup = weakref.finalize(self, _remove_own, self._partial, os.getpid())
        self._files = {name: (self._folder / name).open("wb", buffering=_BUFFER) for name in self._names}


class SpilledDetections:
    """The detections of all processes, each image once, by image; masks stay on disk.

    Attributes:
        seen: (i,) int64 ascending positions of the processed images.
        sizes: (i, 2) int64, height and width of the masks of each.
        offsets: (i + 1,) int64; detections of the image `seen[j]` are rows [j], [j + 1] of the columns.
        image: (n,) int32 position of each detection's image.
        cls: (n,) int32.
        score: (n,) float32.
        box: (n, 4) float32 corners in pixels.
    """

    def __init__(self, parts: Sequence[SpilledPart]) -> None:
        """Reads everything but the masks.

        Args:
            parts: of all processes by rank. An image that several were given (padding of the last batch)
                counts once, the lowest rank first.

        Raises:
            DataError: a file is missing or too short.
        """
        with_files = [part for part in parts if part.folder is not None]
        read = [_read_part(part) for part in with_files]
        names = [name for name in _COLUMNS if name != "runs" and (not read or name in read[0])]
        joined = {name: _join([one[name] for one in read], name) for name in names}
        self.seen, first = np.unique(joined["image"].astype(np.int64), return_index=True)
        starts = np.cumsum(joined["count"], dtype=np.int64) - joined["count"]
        counts = joined["count"][first].astype(np.int64)
        self.sizes = joined["size"][first].astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(starts[first] - self.offsets[:-1], counts) + np.arange(self.offsets[-1])
        self.image = np.repeat(self.seen, counts).astype(np.int32)
        self.cls, self.score, self.box = (joined[name][rows] for name in ("cls", "score", "box"))
        self._runs = [one["runs"] for one in read if "runs" in one]
        self._bases = np.cumsum([0, *(len(runs) for runs in self._runs[:-1])])
        if self._runs:
            ends = np.cumsum(joined["length"], dtype=np.int64)
            self._first_byte, self._last_byte = (ends - joined["length"])[rows], ends[rows]

    def __len__(self) -> int:
        return len(self.score)

    @property
    def has_masks(self) -> bool:
        """Whether the detections have masks."""
        return bool(self._runs)

    def masks(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """COCO's run lengths of some detections.

        Args:
            rows: (r,) of the columns.
        """
        places = np.searchsorted(self.offsets, rows, side="right") - 1
        parts = np.searchsorted(self._bases, self._first_byte[rows], side="right") - 1
        found = []
        for place, part, row in zip(places.tolist(), parts.tolist(), rows.tolist(), strict=True):
            base = self._bases[part]
            counts = self._runs[part][self._first_byte[row] - base : self._last_byte[row] - base]
            found.append({"size": self.sizes[place].tolist(), "counts": counts.tobytes()})
        return found


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot keep detections here ({error.strerror or error}); make "
            "room, or evaluate with another output folder"
        ) from error


def remove_parts(parts: Sequence[SpilledPart]) -> None:
    """Removes the folders of all processes, as far as they are there."""
    for part in parts:
        if part.folder is not None:
            shutil.rmtree(part.folder, ignore_errors=True)
            part.folder.with_name(f"{part.folder.name}.lock").unlink(missing_ok=True)


def _read_part(part: SpilledPart) -> dict[str, np.ndarray]:
    assert part.folder is not None
    columns: dict[str, np.ndarray] = {}
    for name, rows in part.rows.items():
        dtype, width = np.dtype(_COLUMNS[name][0]), _COLUMNS[name][1]
        path = part.folder / name
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(
                f"{path} is not there: process {part.rank} on {part.host} wrote its detections to it; the "
                "output folder must be one that all machines share"
            ) from None
        if size != rows * dtype.itemsize * int(np.prod(width)):
            raise DataError(
                f"{path} has {size} bytes, not those of {rows} rows that process {part.rank} on {part.host} "
                "wrote: another run uses the output folder, or the machines do not share it"
            )
        if name == "runs" and rows:
            columns[name] = np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
        else:
            columns[name] = np.fromfile(path, dtype=dtype).reshape(rows, *width)
    return columns


def _join(columns: Sequence[np.ndarray], name: str) -> np.ndarray:
    if len(columns) == 1:
        return columns[0]
    dtype, width = _COLUMNS[name]
    return np.concatenate([np.zeros((0, *width), dtype=dtype), *columns])


def _remove_own(partial: PartialFolder, pid: int) -> None:
    if os.getpid() == pid:
        partial.remove()
