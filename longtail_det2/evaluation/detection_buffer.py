"""Detections of an evaluation as columns, gathered once over all processes, for every metric."""

from __future__ import annotations

import logging
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.utils import comm

from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.ragged import gather_rows, offsets_of

if TYPE_CHECKING:
    from detectron2.structures import Instances

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 1 << 30
"""Bytes of masks that a process keeps in memory; all are on disk as soon as there are more."""
_BYTES_PER_ROUND = 1 << 26
_COLUMNS = {
    "image": (np.int32, ()),
    "count": (np.int32, ()),
    "size": (np.int32, (2,)),
    "cls": (np.int32, ()),
    "score": (np.float32, ()),
    "box": (np.float32, (4,)),
    "length": (np.int32, ()),
}


@dataclass(frozen=True)
class DetectionColumns:
    """Detections of all processes, each image once, by image, within an image in the order of the model.

    Attributes:
        seen: (i,) int64 ascending positions of the images that had an output.
        sizes: (i, 2) int64 height and width of each in pixels.
        offsets: (i + 1,) int64; the detections of image `seen[j]` are rows [j], [j + 1] of the columns.
        image: (n,) int64 position of the image in the store.
        cls: (n,) int32 class index.
        score: (n,) float32.
        box: (n, 4) float32 corners (x0, y0, x1, y1) in pixels of the original image.
        has_masks: whether `masks` has an answer.
    """

    seen: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    box: np.ndarray
    has_masks: bool
    _mask_start: np.ndarray
    _mask_length: np.ndarray
    _mask_source: np.ndarray
    _mask_bytes: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.score)

    def boxes_xywh(self, rows: np.ndarray | slice) -> np.ndarray:
        """(r, 4) float64 boxes of some rows, (x, y, width, height) in pixels."""
        box = self.box[rows].astype(np.float64)
        box[:, 2:] -= box[:, :2]
        return box

    def shares(self) -> np.ndarray:
        """(n, 4) float32 corners as shares of the image's width and height."""
        sides = np.tile(self.sizes[:, ::-1], 2).repeat(np.diff(self.offsets), axis=0)
        return (self.box.astype(np.float64) / sides).astype(np.float32)

    def masks(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """COCO's compressed RLE of some rows.

        Args:
            rows: (r,) of n.
        """
        sizes = self.sizes[np.searchsorted(self.seen, self.image[rows])].tolist()
        columns = (self._mask_source, self._mask_start, self._mask_length)
        places = zip(sizes, *(column[rows].tolist() for column in columns), strict=True)
        return [
            {"size": size, "counts": self._mask_bytes[source][start : start + length].tobytes()}
            for size, source, start, length in places
        ]


class DetectionBuffer:
    """Collects `Instances` of one process as columns.

    28 bytes a detection are kept in memory. RLE masks are kept in memory up to a limit, and beyond it in a
    file without a name in the folder for temporary files (TMPDIR): the system removes it when the process
    ends, however it ends.
    """

    def __init__(self, store: AnnotationStore, *, with_masks: bool, memory_limit: int = MEMORY_LIMIT) -> None:
        """Open an empty buffer.

        Args:
            store: whose images and classes the detections are of.
            with_masks: keep masks.
            memory_limit: bytes of masks.
        """
        self._store = store
        self._with_masks = with_masks
        self._memory_limit = memory_limit
        self._index = {name.decode(): place for place, name in enumerate(store.image_ids.tolist())}
        self.reset()

    def reset(self) -> None:
        """Drop everything."""
        self._rows: list[Mapping[str, Any]] = []
        self._masks = _ByteLog(self._memory_limit)
        self._dropped = {"not_in_store": 0, "not_finite": 0}

    def add(self, record: Mapping[str, Any], instances: Instances) -> None:
        """Append the detections of one image; those with a box or score that is not finite are dropped.

        Args:
            record: dataset dict with "image_id", "height", "width" (default: `instances.image_size`).
            instances: in pixels of the original image, with pred_boxes, scores, pred_classes, and pred_masks
                (n, H, W) bool where masks are kept.

        Raises:
            ConfigError: the model gives no masks, or knows classes that the store does not have.
            DataError: the disk is full.
        """
        image = self._index.get(str(record["image_id"]))
        if image is None:
            self._dropped["not_in_store"] += 1
            return
        box = instances.pred_boxes.tensor.detach().float().cpu().numpy()
        score = instances.scores.detach().float().cpu().numpy()
        cls = instances.pred_classes.cpu().numpy().astype(np.int32)
        if len(cls) and cls.max() >= self._store.num_classes:
            raise ConfigError(
                f"the model found an object of class {cls.max()}, but {self._store.path} has "
                f"{self._store.num_classes} classes: training and evaluation need the same classes"
            )
        height, width = instances.image_size
        finite = np.flatnonzero(np.isfinite(box).all(axis=1) & np.isfinite(score))
        self._dropped["not_finite"] += len(score) - len(finite)
        counts = _encode_masks(instances, finite) if self._with_masks else []
        self._masks.append(b"".join(counts))
        self._rows.append(
            {
                "image": [image],
                "count": [len(finite)],
                "size": [(record.get("height", height), record.get("width", width))],
                "cls": cls[finite],
                "score": score[finite],
                "box": box[finite],
                "length": [len(one) for one in counts],
            }
        )

    def gather(self, *, distributed: bool = True) -> DetectionColumns | None:
        """Join the columns of all processes, and empty the buffer.

        An image that several processes were given (padding of the last batch) counts once, the lowest rank
        first. Logs images without output, unknown images, and dropped detections.

        Args:
            distributed: False looks at this process alone.

        Returns:
            The detections; None on processes other than the main one.
        """
        rows, masks, dropped = self._rows, self._masks, self._dropped
        self.reset()
        part = {name: _column(name, [row[name] for row in rows]) for name in _COLUMNS}
        parts, sources, counters = [part], [masks.read()], [dropped]
        if distributed and comm.get_world_size() > 1:
            parts, counters = comm.gather(part), comm.gather(dropped)
            sources = _gather_bytes(sources[0], self._memory_limit)
            if not comm.is_main_process():
                return None
        found = _join(parts, sources, self._with_masks)
        self._log(len(found.seen), {name: sum(one[name] for one in counters) for name in dropped})
        return found

    def _log(self, seen: int, dropped: Mapping[str, int]) -> None:
        path = self._store.path
        if dropped["not_in_store"]:
            logger.warning("%d outputs are of images that are not in %s", dropped["not_in_store"], path)
        if dropped["not_finite"]:
            logger.warning(
                "%d detections with a box or score that is not finite were dropped", dropped["not_finite"]
            )
        missing = len(self._store) - seen
        if missing:
            logger.warning(
                "%d of %d images had no output: their objects count as missed", missing, len(self._store)
            )


class _ByteLog:
    """Bytes that are appended, then read once; on disk as soon as there are more than a limit."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None

    def append(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._file is not None or self._size > self._limit:
            try:
                self._file = self._file or tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115
                self._file.writelines(self._parts)
            except OSError as error:
                raise DataError(
                    f"{tempfile.gettempdir()}: cannot keep masks here ({error.strerror or error}); make "
                    "room, or set TMPDIR to another folder"
                ) from error
            self._parts = []

    def read(self) -> np.ndarray:
        """(bytes,) uint8; mapped from the file if there is one."""
        if self._file is None:
            return np.frombuffer(b"".join(self._parts), dtype=np.uint8)
        self._file.flush()
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    dtype, shape = _COLUMNS[name]
    parts = [np.asarray(one, dtype).reshape(-1, *shape) for one in values]
    return np.concatenate([np.zeros((0, *shape), dtype), *parts])


def _encode_masks(instances: Instances, rows: np.ndarray) -> list[bytes]:
    if len(rows) == 0:
        return []
    if not instances.has("pred_masks"):
        raise ConfigError(
            "masks are to be evaluated, but the model gives none (pred_masks): switch MODEL.MASK_ON on, or "
            "evaluate boxes only (TEST.TASKS ('bbox',))"
        )
    encode: Any = coco_mask.encode
    masks = instances.pred_masks.cpu().numpy()
    return [encode(np.asfortranarray(masks[row], dtype=np.uint8))["counts"] for row in rows.tolist()]


def _gather_bytes(own: np.ndarray, memory_limit: int) -> list[np.ndarray]:
    """The bytes of every process, on the main process, sent in rounds of a bounded size."""
    rounds = max(comm.all_gather(-(-len(own) // _BYTES_PER_ROUND)))
    logs: list[_ByteLog] = []
    for chunk in _chunks(own, rounds):
        received = comm.gather(chunk)
        logs = logs or [_ByteLog(memory_limit // len(received)) for _ in received]
        for log, data in zip(logs, received, strict=True):
            log.append(data)
    return [log.read() for log in logs] or [np.zeros(0, np.uint8)] * comm.get_world_size()


def _chunks(data: np.ndarray, rounds: int) -> Iterator[bytes]:
    for start in range(0, rounds * _BYTES_PER_ROUND, _BYTES_PER_ROUND):
        yield data[start : start + _BYTES_PER_ROUND].tobytes()


def _join(
    parts: Sequence[Mapping[str, np.ndarray]], sources: Sequence[np.ndarray], has_masks: bool
) -> DetectionColumns:
    """Columns of all ranks, each image once, ascending by image."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    seen, first = np.unique(joined["image"].astype(np.int64), return_index=True)
    rows, offsets = gather_rows(offsets_of(joined["count"]), first)
    length = start = source = np.zeros(0, np.int64)
    if has_masks:
        starts = [offsets_of(part["length"])[:-1] for part in parts]
        length, start = joined["length"][rows], np.concatenate(starts)[rows]
        source = np.repeat(np.arange(len(parts)), [len(one) for one in starts])[rows]
    return DetectionColumns(
        seen=seen,
        sizes=joined["size"][first].astype(np.int64),
        offsets=offsets,
        image=np.repeat(seen, np.diff(offsets)),
        cls=joined["cls"][rows],
        score=joined["score"][rows],
        box=joined["box"][rows],
        has_masks=has_masks,
        _mask_start=start,
        _mask_length=length,
        _mask_source=source,
        _mask_bytes=sources,
    )
