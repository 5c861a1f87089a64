"""Image files of files and folders, what a trained detector predicts on them, and files of predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from longtail_det2.data.images import SUFFIXES, read_image
from longtail_det2.evaluation.openimages_io import Detections, write_detections
from longtail_det2.export.source import TrainedDetector, to_input
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer

from .multi_label_visualizer import MultiLabelVisualizer, room_for


class ImageFile(NamedTuple):
    """One input; `name` is its path below the folder that was named, or the file's name."""

    path: Path
    name: Path
    was_named: bool  # itself, not its folder


def find_images(inputs: Sequence[str | Path], leave_out: Path | None = None) -> list[ImageFile]:
    """Find image files, given by themselves or by folders at any depth, each once, folders in name order.

    Args:
        inputs: files and folders. Of folders, the files with an image's suffix are taken.
        leave_out: a folder whose files are no inputs (where the results go).

    Raises:
        DataError: an input does not exist, or there is no image in any folder.
    """
    found: dict[str, ImageFile] = {}
    for one in map(Path, inputs):
        if one.is_dir():
            for path in _walk(one, leave_out):
                found.setdefault(os.path.realpath(path), ImageFile(path, path.relative_to(one), False))
        elif one.exists():
            found.setdefault(os.path.realpath(one), ImageFile(one, Path(one.name), True))
        else:
            raise DataError(f"{one}: no such file or folder")
    if not found:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{', '.join(map(str, inputs))}: no images there; their names end in {suffixes}")
    return list(found.values())


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if leave_out is not None and os.path.realpath(parent) == os.path.realpath(leave_out):
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
        """Predict one file.

        Returns:
            The upright image, (H, W, 3) uint8 RGB, and its predictions on the CPU: `pred_boxes` in pixels
            of the image, `pred_classes`, `scores`, of a detector with masks `pred_masks` (n, H, W) bool.

        Raises:
            DataError: the file cannot be read as an image.
        """
        pixels = read_image(path, "RGB")
        return pixels, self.predict(pixels)

    def predict(self, pixels: np.ndarray) -> Instances:
        """Predict an image, (H, W, 3) uint8 RGB; see :meth:`__call__`."""
        ordered = pixels[:, :, ::-1] if self._detector.image_format == "BGR" else pixels
        height, width = pixels.shape[:2]
        scaled = to_input(ordered, self._detector.min_size, self._detector.max_size)
        with torch.no_grad():
            (output,) = self._model([{"image": scaled, "height": height, "width": width}])
        return output["instances"].to("cpu")


def draw_predictions(
    pixels: np.ndarray, instances: Instances, metadata: Metadata, threshold: float
) -> Image.Image:
    """Draw predictions with scores from `threshold` on over an image, (H, W, 3) uint8 RGB."""
    room = room_for(int((instances.scores >= threshold).sum()))
    visualizer = MultiLabelVisualizer(pixels, metadata, min_size=room)
    drawing = visualizer.draw_instance_predictions(instances, score_threshold=threshold)
    return Image.fromarray(drawing.get_image())


def coco_results(
    image_id: str, instances: Instances, class_ids: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the predictions of one image as COCO results, with the name of the class beside its id.

    Args:
        image_id: of the image.
        instances: n predictions on the CPU; masks become compressed RLE.
        class_ids: K identifiers.
        names: K display names.
    """
    rows = instances_to_coco_json(instances, image_id)
    for row in rows:
        index = row["category_id"]
        class_id = str(class_ids[index])
        row.update(category_id=int(class_id) if class_id.isdecimal() else class_id, category=names[index])
    return rows


def write_predictions(
    path: Path, rows: Sequence[dict[str, Any]], sizes: Mapping[str, tuple[int, int]], class_ids: Sequence[str]
) -> None:
    """Write predictions of any number of images; the file appears when it is complete.

    Args:
        path: `.csv` for the form of the Open Images challenge (boxes as shares of the image, no masks),
            `.json` for COCO results.
        rows: as `coco_results` returns them.
        sizes: (height, width) of each image by id.
        class_ids: K identifiers.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            write_detections(path, _detections(rows, sizes, class_ids), class_ids, list(sizes))
        else:
            with atomic_writer(path) as stream:
                stream.write(
                    "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
                )
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def _detections(
    rows: Sequence[dict[str, Any]], sizes: Mapping[str, tuple[int, int]], class_ids: Sequence[str]
) -> Detections:
    images = {name: place for place, name in enumerate(sizes)}
    classes = {str(name): place for place, name in enumerate(class_ids)}
    columns = [(images[row["image_id"]], classes[str(row["category_id"])], row["score"]) for row in rows]
    image, cls, score = np.array(columns, dtype=np.float64).reshape(-1, 3).T
    image = image.astype(np.int64)
    box = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    box[:, 2:] += box[:, :2]
    box /= np.array(list(sizes.values()), dtype=np.float64).reshape(-1, 2)[image][:, [1, 0, 1, 0]]
    return Detections(image, cls.astype(np.int32), score, box.clip(0, 1).astype(np.float32))
