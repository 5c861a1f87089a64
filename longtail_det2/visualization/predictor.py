"""Image files of files and folders, and what a trained detector predicts on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from PIL import Image

from longtail_det2.data.images import SUFFIXES, read_image
from longtail_det2.engine.setup import available_device
from longtail_det2.export.source import TrainedDetector, to_input
from longtail_det2.utils.errors import DataError

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
        if not one.exists():
            raise DataError(f"{one}: no such file or folder")
        for path in _walk(one, leave_out) if one.is_dir() else [one]:
            name = Path(path.name) if path == one else path.relative_to(one)
            found.setdefault(os.path.realpath(path), ImageFile(path, name, path == one))
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

    def __init__(self, detector: TrainedDetector, device: str = "") -> None:
        """Move the model to `device`; "" takes CUDA where there is some."""
        self._detector = detector
        self._model = detector.model.to(device or available_device("cuda")).eval()

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
