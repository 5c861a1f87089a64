"""From a trained detector to a folder with the exported model, verified against eager PyTorch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtail_det2.model_zoo.new_folder import check_vacant, folder_that_appears
from longtail_det2.utils.errors import ConfigError, DataError

from .adapter import detect
from .compare import TOLERANCE, Difference, compare_detections
from .graph import MODEL_FILE, record_onnx
from .metadata import METADATA_FILE, describe
from .runtime import ExportedDetector
from .source import TrainedDetector, to_input

logger = logging.getLogger(__name__)

_PICTURES = 3
"""Images of a test set that a model is verified on where none are given."""


@dataclass(frozen=True)
class Exported:
    """Result of :func:`export_detector`.

    Attributes:
        folder: with the model, ``metadata.json`` and ``config.yaml``.
        differences: between the exported and the eager model, by image and size.
    """

    folder: Path
    differences: dict[str, Difference]


def export_detector(
    detector: TrainedDetector,
    output: str | Path,
    *,
    pictures: Sequence[str | Path] = (),
    tolerance: float = TOLERANCE,
) -> Exported:
    """Record a detector, compare it with eager PyTorch on images, and write a folder, or nothing.

    The comparison is on each image at the size of a test and at three quarters of it.

    Args:
        detector: see :func:`longtail_det2.export.source.load_detector`.
        output: folder to make.
        pictures: files to compare on; () takes the first of the config's test data, or a drawn one where
            there are none.
        tolerance: see :data:`longtail_det2.export.compare.TOLERANCE`.

    Raises:
        ConfigError: the folder exists, a package is missing, or the outputs differ.
        DataError: an image cannot be read.
    """
    check_vacant(Path(output))
    samples = dict(sample_pictures(detector, pictures))
    with folder_that_appears(Path(output)) as folder:
        first = to_input(next(iter(samples.values())), detector.min_size, detector.max_size)
        names = record_onnx(detector.model, first, folder / MODEL_FILE)
        metadata = describe(detector, names)
        _write_json(folder / METADATA_FILE, metadata)
        differences = verify(detector, ExportedDetector(folder), samples)
        worst = max(differences.items(), key=lambda item: item[1].largest)
        if worst[1].largest > tolerance:
            raise ConfigError(
                f"the exported model differs from eager PyTorch by more than {tolerance:g}, nothing is "
                f"written: {worst[0]}: {worst[1]}. Rounding may decide between proposals of nearly equal "
                "scores: try another image (--sample-image)"
            )
        metadata["verified"] = {name: str(difference) for name, difference in differences.items()}
        _write_json(folder / METADATA_FILE, metadata)
        (folder / "config.yaml").write_text(detector.config_text(), encoding="utf-8")
    return Exported(Path(output), differences)


def verify(
    detector: TrainedDetector, exported: ExportedDetector, samples: dict[str, np.ndarray]
) -> dict[str, Difference]:
    """Return the differences between an exported model and the eager one.

    Args:
        detector: the eager one.
        exported: the other.
        samples: images (H, W, 3) uint8 by name.
    """
    differences = {}
    for name, picture in samples.items():
        for share in (1.0, 0.75):
            image = to_input(picture, round(detector.min_size * share), round(detector.max_size * share))
            with torch.no_grad():
                eager = detect(detector.model, [{"image": image}])
            found = {key: value.numpy() for key, value in eager.items()}
            size = (image.shape[1], image.shape[2])
            other = exported.detect(image)
            cut = _cut(exported.metadata["thresholds"], found["scores"], other["scores"])
            overlap = exported.metadata["thresholds"]["nms"] or 1.0
            difference = compare_detections(found, other, size, cut=cut, overlap=overlap)
            differences[f"{name} at {size[1]} x {size[0]}"] = difference
    if not any(difference.detections[0] for difference in differences.values()):
        logger.warning("nothing was detected on the sample pictures: the comparison says little")
    return differences


def _cut(thresholds: dict[str, Any], *scores: np.ndarray) -> np.ndarray:
    """Return the score up to which rounding decides whether something is detected, () or one per class."""
    cut, limit = np.asarray(thresholds["score"] or 0.0), thresholds["detections_per_image"]
    if limit and max(map(len, scores)) >= limit:
        cut = np.maximum(cut, max(one.min() for one in scores if len(one)))
    return cut + TOLERANCE


def sample_pictures(
    detector: TrainedDetector, pictures: Sequence[str | Path] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over names and pixels (H, W, 3) uint8 of the images to compare on.

    Raises:
        DataError: an image cannot be read.
    """
    from longtail_det2.data.images import read_image

    files = [Path(picture) for picture in pictures] or list(_test_pictures(detector))
    for file in files:
        yield file.name, read_image(file, detector.image_format)
    if not files:
        logger.warning("there are no test pictures here: comparing on a drawn one (see --sample-image)")
        yield "a drawn picture", drawn_picture()


def drawn_picture(height: int = 240, width: int = 320) -> np.ndarray:
    """Draw rectangles and discs in colours on noise, (height, width, 3) uint8, always the same."""
    generator = np.random.default_rng(0)
    picture = generator.integers(90, 160, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for index in range(12):
        x, y = generator.integers(0, width), generator.integers(0, height)
        side = int(generator.integers(20, 100))
        inside = (columns >= x) & (columns < x + side) & (rows >= y) & (rows < y + side)
        if index % 2:
            inside = (columns - x) ** 2 + (rows - y) ** 2 < (side / 2) ** 2
        picture[inside] = generator.integers(0, 255, 3)
    return picture


def _test_pictures(detector: TrainedDetector) -> Iterator[Path]:
    """Iterate over the first images of the config's test data, as far as they are on this machine."""
    from detectron2.data import DatasetCatalog

    try:
        detector.register_data()
        records = DatasetCatalog.get(detector.test_datasets[0])
        found = [Path(records[index]["file_name"]) for index in range(min(_PICTURES, len(records)))]
    except (DataError, KeyError, IndexError) as error:
        logger.debug("no test pictures: %s", error)
        return
    yield from (path for path in found if path.is_file())


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
