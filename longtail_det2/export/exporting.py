"""From a trained detector to a folder with the exported model, verified against eager PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from longtail_det2.data.images import read_image
from longtail_det2.model_zoo.publishing import new_folder
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import write_json

from .compare import TOLERANCE, Difference, compare_detections, compare_scores
from .graph import MODEL_FILE, detect, record_onnx
from .metadata import METADATA_FILE, describe
from .runtime import ExportedDetector
from .source import TrainedDetector

logger = logging.getLogger(__name__)

_IMAGES = 3
"""Images of a test set that a model is verified on where none are given."""


def export_detector(
    detector: TrainedDetector,
    output: str | Path,
    *,
    pictures: Sequence[str | Path] = (),
    tolerance: float = TOLERANCE,
) -> dict[str, Difference]:
    """Record a detector, compare it with eager PyTorch on images, and write a folder, or nothing.

    Args:
        detector: see :func:`longtail_det2.export.source.load_detector`.
        output: folder to make, for the model, ``metadata.json`` and ``config.yaml``.
        pictures: image files to compare on; () takes the first of the config's test data.
        tolerance: see :data:`longtail_det2.export.compare.TOLERANCE`.

    Returns:
        The differences between the exported and the eager model, by image and size.

    Raises:
        ConfigError: the folder exists, a package is missing, there are no images, or the outputs differ.
        DataError: an image cannot be read.
    """
    with new_folder(output) as folder:
        files = [Path(picture) for picture in pictures] or _test_images(detector)
        samples = {file.name: read_image(file, detector.image_format) for file in files}
        metadata = describe(detector, record_onnx(detector.model, folder / MODEL_FILE, detector.fixed_size))
        write_json(folder / METADATA_FILE, metadata, indent=1)
        differences = verify(detector, ExportedDetector(folder), samples)
        name, worst = max(differences.items(), key=lambda item: item[1].largest)
        if not worst.largest <= tolerance:
            raise ConfigError(
                f"the exported model differs from eager PyTorch by more than {tolerance:g}, nothing is "
                f"written: {name}: {worst}. Rounding may decide between proposals of nearly equal scores: "
                "try another image (--sample-image)"
            )
        metadata["verified"] = {name: str(difference) for name, difference in differences.items()}
        write_json(folder / METADATA_FILE, metadata, indent=1)
        (folder / "config.yaml").write_text(detector.config_text(), encoding="utf-8")
    return differences


def verify(
    detector: TrainedDetector, exported: ExportedDetector, samples: Mapping[str, np.ndarray]
) -> dict[str, Difference]:
    """Return the differences between an exported model and the eager one, by image and size.

    Each image is compared at the size of a test and, unless that is fixed, at three quarters of it.

    Args:
        detector: the eager one.
        exported: the other.
        samples: images (H, W, 3) uint8 by name.
    """
    differences = {}
    limits = exported.metadata["thresholds"]
    for name, picture in samples.items():
        for share in (1.0,) if detector.fixed_size else (1.0, 0.75):
            image = detector.input_of(picture, share)
            with torch.no_grad():
                found = {key: value.numpy() for key, value in detect(detector.model, image).items()}
            other, size = exported.detect(image), (image.shape[1], image.shape[2])
            where = f"{name} at {size[1]} x {size[0]}"
            if "boxes" in found:
                cut = _cut(limits, found["scores"], other["scores"])
                differences[where] = compare_detections(found, other, size, cut=cut, overlap=limits["nms"])
            else:
                differences[where] = compare_scores(found["scores"], other["scores"])
    if not any(difference.detections[0] for difference in differences.values()):
        logger.warning("nothing was detected on the sample images: the comparison says little")
    return differences


def _cut(limits: Mapping[str, Any], *scores: np.ndarray) -> np.ndarray:
    """Return the score up to which rounding decides whether something is detected, () or one per class."""
    cut, most = np.asarray(limits["score"]), limits["detections_per_image"]
    if 0 <= most <= max(map(len, scores)):
        cut = np.maximum(cut, max(one.min(initial=1.0) for one in scores))
    return cut + TOLERANCE


def _test_images(detector: TrainedDetector) -> list[Path]:
    """Return the first images of the config's test data."""
    try:
        detector.register_data()
        records = DatasetCatalog.get(detector.test_datasets[0])
        return [Path(records[index]["file_name"]) for index in range(min(_IMAGES, len(records)))]
    except (DataError, KeyError, IndexError) as error:
        raise ConfigError(
            f"the config's test data give no images to compare on ({error}): name some with --sample-image"
        ) from error
