"""Image files of files and folders, and what a trained detector predicts on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from PIL import Image

from longtail_det2.data.images import SUFFIXES
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
    results = leave_out and leave_out.resolve()
    found: dict[Path, ImageFile] = {}
    for one in map(Path, inputs):
        if not one.exists():
            raise DataError(f"{one}: no such file or folder")
        if not one.is_dir():
            found.setdefault(one.resolve(), ImageFile(one, Path(one.name), was_named=True))
            continue
        for path in sorted(one.rglob("*")):
            name, real = path.relative_to(one), path.resolve()
            passed = results in real.parents or any(part.startswith(".") for part in name.parts[:-1])
            if path.suffix.lower() in SUFFIXES and path.is_file() and not passed:
                found.setdefault(real, ImageFile(path, name, was_named=False))
    if not found:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{', '.join(map(str, inputs))}: no images there; their names end in {suffixes}")
    return list(found.values())


class Predictor:
    """Runs a trained detector on images, one by one, as the evaluation would."""

    def __init__(self, detector: TrainedDetector, device: str = "") -> None:
        """Move the model to `device`; "" takes CUDA where there is some."""
        self._detector = detector
        self._model = detector.model.to(device or available_device("cuda")).eval()

    def predict(self, pixels: np.ndarray) -> Instances:
        """Predict an upright image, (H, W, 3) uint8 RGB.

        Returns:
            On the CPU: `pred_boxes` in pixels of the image, `pred_classes`, `scores`, and of a detector with
            masks `pred_masks` (n, H, W) bool.
        """
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
