"""Predictions from disk, in the challenge's CSV form or in COCO's JSON form, against a store."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import read_detections
from longtail_det2.evaluation.openimages_matching import Detections
from longtail_det2.utils.errors import DataError

logger = logging.getLogger(__name__)

__all__ = ["read_predictions"]


def read_predictions(path: str | Path, store: AnnotationStore) -> Detections:
    """Reads predictions for the images of a store.

    Args:
        path: `.csv` with ImageID, LabelName, Score, XMin, XMax, YMin, YMax (normalised), or `.json` as
            Detectron2's COCO evaluator writes it: a list of {"image_id", "category_id", "bbox", "score"} with
            bbox XYWH in pixels.
        store: gives the order of images and classes; its class ids are the labels, as text.

    Returns:
        Detections with normalised boxes. Those of images that are not in the store are left out, with a
        warning.

    Raises:
        DataError: the file is unreadable or malformed, or names an unknown class.
    """
    path = Path(path)
    image_ids = [name.decode() for name in store.image_ids.tolist()]
    if path.suffix.lower() == ".json":
        detections, unknown = _read_json(path, store, image_ids)
    else:
        detections, left_out = read_detections(path, store.class_ids, image_ids)
        unknown = left_out.get("unknown_image", 0)
    if unknown:
        logger.warning("%s: %d predictions are of images that are not in %s", path, unknown, store.path)
    return detections


def _read_json(path: Path, store: AnnotationStore, image_ids: list[str]) -> tuple[Detections, int]:
    rows = _json_rows(path)
    image_of = {name: place for place, name in enumerate(image_ids)}
    class_of = {name: place for place, name in enumerate(store.class_ids)}
    images, classes, scores, boxes = [], [], [], []
    for number, row in enumerate(rows):
        try:
            label = str(row["category_id"])
            image = image_of.get(str(row["image_id"]), -1)
            x, y, width, height = (float(value) for value in row["bbox"])
            score = float(row["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: entry {number} is no COCO result ({error!r}); expected image_id, category_id, bbox "
                "(x, y, width, height) and score"
            ) from None
        if label not in class_of:
            raise DataError(f"{path}: entry {number}: category_id {label!r} is no class of {store.path}")
        images.append(image)
        classes.append(class_of[label])
        scores.append(score)
        boxes.append((x, y, x + width, y + height))
    image = np.array(images, dtype=np.int64)
    known = image >= 0
    height, width = store.image_sizes[image[known]].reshape(-1, 2).T.astype(np.float64)
    box = np.array(boxes, dtype=np.float64).reshape(-1, 4)[known]
    box /= np.stack([width, height, width, height], axis=1)
    detections = Detections(
        image[known], np.array(classes, dtype=np.int32)[known], np.array(scores)[known], box
    )
    return detections, int((~known).sum())


def _json_rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of results, got {type(rows).__name__}")
    return rows
