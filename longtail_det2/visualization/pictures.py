"""Pictures of files and folders, and what a trained detector says about them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.structures import Instances

from longtail_det2.data.images import SUFFIXES, read_image
from longtail_det2.evaluation.openimages_io import Detections, write_detections
from longtail_det2.export.source import TrainedDetector, to_input
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer


@dataclass(frozen=True)
class PictureFile:
    """One input.

    Attributes:
        path: of the file.
        name: path below the folder that was named, or the file's name.
        was_named: the user named the file itself, not its folder.
    """

    path: Path
    name: Path
    was_named: bool


def find_pictures(inputs: Sequence[str | Path], leave_out: Path | None = None) -> list[PictureFile]:
    """Image files, given by themselves or by folders at any depth, each once, folders in the order of names.

    Args:
        inputs: files and folders. Of folders, the files with an image's suffix are taken.
        leave_out: a folder whose files are no inputs (where the results go).

    Raises:
        DataError: an input does not exist, or there is no picture in any folder.
    """
    found: dict[Path, PictureFile] = {}
    for one in map(Path, inputs):
        if one.is_dir():
            for path in _walk(one, leave_out):
                found.setdefault(path.resolve(), PictureFile(path, path.relative_to(one), False))
        elif one.exists():
            found.setdefault(one.resolve(), PictureFile(one, Path(one.name), True))
        else:
            raise DataError(f"{one}: no such file or folder")
    if not found:
        raise DataError(
            f"{', '.join(map(str, inputs))}: no pictures there; files that end in "
            f"{', '.join(sorted(SUFFIXES))} are looked for"
        )
    return list(found.values())


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    skipped = None if leave_out is None else leave_out.resolve()
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != skipped
        )
        if Path(parent).resolve() == skipped:
            folders.clear()
            continue
        yield from (Path(parent, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)


class Predictor:
    """Runs a trained detector on image files, one by one, as the evaluation would."""

    def __init__(self, detector: TrainedDetector, device: str = "cpu") -> None:
        """Move the model to `device`."""
        self._detector = detector
        self._model = detector.model.to(device).eval()

    def __call__(self, path: str | Path) -> tuple[np.ndarray, Instances]:
        """Predictions for one file.

        Returns:
            The upright picture, (H, W, 3) uint8 RGB, and its predictions on the CPU: `pred_boxes` in pixels
            of the picture, `pred_classes`, `scores`, of a detector with masks `pred_masks` (n, H, W) bool.

        Raises:
            DataError: the file cannot be read as an image.
        """
        pixels = read_image(path, "RGB")
        ordered = pixels[:, :, ::-1] if self._detector.image_format == "BGR" else pixels
        height, width = pixels.shape[:2]
        scaled = to_input(ordered, self._detector.min_size, self._detector.max_size)
        with torch.no_grad():
            (output,) = self._model([{"image": scaled, "height": height, "width": width}])
        return pixels, output["instances"].to("cpu")


@dataclass(frozen=True)
class PicturePredictions:
    """Predictions for one picture.

    Attributes:
        image_id: what the predictions file calls it.
        size: (height, width) in pixels.
        boxes: (n, 4) XYXY in pixels.
        classes: (n,) class indices.
        scores: (n,).
        masks: n compressed run lengths {"size": [height, width], "counts": bytes}; None of a detector without
            masks.
    """

    image_id: str
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: Sequence[dict[str, Any]] | None = None

    @classmethod
    def of(cls, image_id: str, instances: Instances, *, with_masks: bool = True) -> PicturePredictions:
        """From a detector's output; without its masks where nobody wants them."""
        masks = None
        if with_masks and instances.has("pred_masks"):
            masks = [_encode(mask) for mask in instances.pred_masks.numpy()]
        return cls(
            image_id,
            instances.image_size,
            instances.pred_boxes.tensor.numpy(),
            instances.pred_classes.numpy(),
            instances.scores.numpy(),
            masks,
        )


def _encode(mask: np.ndarray) -> dict[str, Any]:
    runs: Any = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"]}


def write_predictions(
    path: Path, predictions: Sequence[PicturePredictions], class_ids: Sequence[str], names: Sequence[str]
) -> None:
    """Writes predictions of any number of pictures; the file appears when it is complete.

    Args:
        path: `.csv` for the form of the Open Images challenge (boxes as shares of the picture), `.json` for
            COCO results (boxes [x, y, width, height] in pixels, masks as compressed run lengths with the
            counts as text) with the name of the class beside its id.
        predictions: of each picture.
        class_ids: K identifiers.
        names: K display names.

    Raises:
        DataError: another suffix, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            write_detections(path, _join(predictions), class_ids, [one.image_id for one in predictions])
        elif path.suffix.lower() == ".json":
            rows = [row for one in predictions for row in _coco_rows(one, class_ids, names)]
            with atomic_writer(path) as stream:
                lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                stream.write(f"[\n{lines}\n]\n")
        else:
            raise DataError(f"{path}: predictions are written to .csv or .json files")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def _join(predictions: Sequence[PicturePredictions]) -> Detections:
    counts = [len(one.scores) for one in predictions]
    scales = [np.array([one.size[1], one.size[0]] * 2, dtype=np.float64) for one in predictions]
    boxes = [one.boxes / scale for one, scale in zip(predictions, scales, strict=True)]
    return Detections(
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate([one.classes for one in predictions] or [np.zeros(0, np.int64)]).astype(np.int32),
        np.concatenate([one.scores for one in predictions] or [np.zeros(0)]),
        np.concatenate(boxes or [np.zeros((0, 4))]).clip(0, 1).astype(np.float32),
    )


def _coco_rows(
    one: PicturePredictions, class_ids: Sequence[str], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    masks = [None] * len(one.scores) if one.masks is None else one.masks
    rows = zip(one.boxes.tolist(), one.classes.tolist(), one.scores.tolist(), masks, strict=True)
    for (x0, y0, x1, y1), label, score, mask in rows:
        class_id = str(class_ids[label])
        row = {
            "image_id": one.image_id,
            "category_id": int(class_id) if class_id.isdecimal() else class_id,
            "category": names[label],
            "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 6),
        }
        if mask is not None:
            row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        yield row
