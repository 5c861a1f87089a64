"""Detections of an evaluation as columns, gathered once over all processes, for every metric."""

from __future__ import annotations

import logging
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances
from detectron2.utils import comm

from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.ragged import gather_rows, offsets_of

logger = logging.getLogger(__name__)

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
    _mask_bytes: bytes | mmap.mmap

    def __len__(self) -> int:
        return len(self.score)

    def boxes_xywh(self, rows: np.ndarray) -> np.ndarray:
        """(r, 4) float64 boxes of some rows, (x, y, width, height) in pixels."""
        box = self.box[rows].astype(np.float64)
        box[:, 2:] -= box[:, :2]
        return box

    def shares(self) -> np.ndarray:
        """(n, 4) float32 corners as shares of the image's width and height."""
        sides = np.tile(self.sizes[:, ::-1], 2).repeat(np.diff(self.offsets), axis=0)
        return (self.box.astype(np.float64) / sides).astype(np.float32)

    def masks(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """COCO's compressed RLE of some rows (r,)."""
        sizes = self.sizes[np.searchsorted(self.seen, self.image[rows])].tolist()
        places = zip(sizes, self._mask_start[rows].tolist(), self._mask_length[rows].tolist(), strict=True)
        return [{"size": size, "counts": self._mask_bytes[at : at + length]} for size, at, length in places]


class DetectionBuffer:
    """Collects `Instances` of one process as columns.

    28 bytes a detection are kept in memory. RLE masks are kept in a file without a name in the folder for
    temporary files (TMPDIR): the system removes it when the process ends, however it ends.
    """

    def __init__(self, store: AnnotationStore, *, with_masks: bool) -> None:
        """Open an empty buffer.

        Args:
            store: whose images and classes the detections are of.
            with_masks: keep masks.

        Raises:
            DataError: no temporary file can be made.
        """
        self._store, self._with_masks = store, with_masks
        self._index = store.index_images()
        self.reset()

    def reset(self) -> None:
        """Drop everything."""
        self._rows: list[Mapping[str, Any]] = []
        self._masks = _temporary_file() if self._with_masks else None
        self._dropped = np.zeros(2, dtype=np.int64)  # outputs of unknown images, detections not finite

    def add(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Append the detections of one image; those with a box or score that is not finite are dropped.

        Args:
            record: dataset dict with "image_id", "height", "width" (default: that of the instances).
            output: of the model, with "instances" in pixels of the original image: pred_boxes, scores,
                pred_classes, and pred_masks (n, H, W) bool where masks are kept.

        Raises:
            ConfigError: the model gives no detections or no masks, or knows classes that the store does not
                have.
            DataError: the disk is full.
        """
        if "instances" not in output:
            raise ConfigError(
                "the metric compares objects, but the model gives none: of a classifier of images, "
                "TEST.METRICS can be 'image_labels' only"
            )
        instances: Instances = output["instances"]
        image = self._index.get(str(record["image_id"]))
        if image is None:
            self._dropped[0] += 1
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
        self._dropped[1] += len(score) - len(finite)
        counts: list[bytes] = []
        if self._masks is not None and len(finite):
            counts = _encode_masks(instances, finite)
            with _disk_errors():
                self._masks.writelines(counts)
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

    def gather(self) -> DetectionColumns | None:
        """Join the columns of all processes, and empty the buffer.

        An image that several processes were given (padding of the last batch) counts once, the lowest rank
        first. Logs images without output, unknown images, and dropped detections.

        Returns:
            The detections; None on processes other than the main one.
        """
        rows, masks, dropped = self._rows, self._masks, self._dropped
        self.reset()
        parts = comm.gather(
            ({name: _column(name, [row[name] for row in rows]) for name in _COLUMNS}, dropped)
        )
        with _disk_errors():
            data = b"" if masks is None else _gather_bytes(masks)
        if not comm.is_main_process():
            return None
        found = join_columns([columns for columns, _ in parts], data, masks is not None)
        unknown, not_finite = np.sum([counts for _, counts in parts], axis=0).tolist()
        images, path = len(self._store), self._store.path
        for count, message in (
            (unknown, f"outputs are of images that are not in {path}"),
            (not_finite, "detections with a box or score that is not finite were dropped"),
            (images - len(found.seen), f"of {images} images had no output: their objects count as missed"),
        ):
            if count:
                logger.warning("%d %s", count, message)
        return found


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{tempfile.gettempdir()}: cannot keep masks here ({error.strerror or error}); make room, or set "
            "TMPDIR to another folder"
        ) from error


def _temporary_file() -> IO[bytes]:
    with _disk_errors():
        return tempfile.TemporaryFile(buffering=1 << 20)


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    dtype, shape = _COLUMNS[name]
    parts = [np.asarray(one, dtype).reshape(-1, *shape) for one in values]
    return np.concatenate([np.zeros((0, *shape), dtype), *parts])


def _encode_masks(instances: Instances, rows: np.ndarray) -> list[bytes]:
    if not instances.has("pred_masks"):
        raise ConfigError(
            "masks are to be evaluated, but the model gives none (pred_masks): switch MODEL.MASK_ON on, or "
            "evaluate boxes only (TEST.TASKS ('bbox',))"
        )
    encode: Any = coco_mask.encode
    masks = instances.pred_masks.cpu().numpy()
    return [encode(np.asfortranarray(masks[row], dtype=np.uint8))["counts"] for row in rows.tolist()]


def _gather_bytes(own: IO[bytes]) -> bytes | mmap.mmap:
    """The bytes of all processes, rank after rank, on the main process, sent in rounds of a bounded size."""
    sizes = comm.all_gather(own.tell())
    if len(sizes) > 1:
        starts, source = offsets_of(np.array(sizes)).tolist(), own
        source.seek(0)
        own = _temporary_file()
        for place in range(0, max(sizes), _BYTES_PER_ROUND):
            received = comm.gather(source.read(_BYTES_PER_ROUND))
            for start, data in zip(starts, received, strict=False):
                own.seek(start + place)
                own.write(data)
    own.flush()
    return mmap.mmap(own.fileno(), 0, access=mmap.ACCESS_READ) if own.seek(0, 2) else b""


def join_columns(
    parts: Sequence[Mapping[str, np.ndarray]], mask_bytes: bytes | mmap.mmap, has_masks: bool
) -> DetectionColumns:
    """Columns of all ranks, each image once, ascending by image."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    seen, first = np.unique(joined["image"].astype(np.int64), return_index=True)
    rows, offsets = gather_rows(offsets_of(joined["count"]), first)
    of_masks = rows if has_masks else rows[:0]
    return DetectionColumns(
        seen=seen,
        sizes=joined["size"][first].astype(np.int64),
        offsets=offsets,
        image=np.repeat(seen, np.diff(offsets)),
        cls=joined["cls"][rows],
        score=joined["score"][rows],
        box=joined["box"][rows],
        has_masks=has_masks,
        _mask_start=offsets_of(joined["length"])[:-1][of_masks],
        _mask_length=joined["length"][of_masks],
        _mask_bytes=mask_bytes,
    )
