"""Results in COCO's JSON form, of any detector, as arrays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import Detections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json


def read_coco_results(
    path: Path, store: AnnotationStore, *, masks: bool = True
) -> tuple[Detections, np.ndarray]:
    """Read a list of {"image_id", "category_id", "bbox", "score"}, perhaps with "segmentation" (COCO's RLE).

    Args:
        path: of the JSON file; its "bbox" are (x, y, width, height) in pixels.
        store: whose images and classes the results are of; ids may be numbers or texts.
        masks: read "segmentation".

    Returns:
        The D detections in the order of the file, boxes in pixels, image -1 for images that are not in
        `store`; and (D,) RLE of their image's size, None without one, whose counts are not looked at.

    Raises:
        DataError: names the file and the detection that is wrong.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: results are a list of detections, not {type(rows).__name__}")
    image_of = store.index_images()
    class_of = {name: place for place, name in enumerate(store.class_ids)}
    sizes = store.image_sizes.tolist()
    table, segmentations = [], np.full(len(rows), None)
    for number, row in enumerate(rows):
        try:
            image, cls = image_of.get(str(row["image_id"]), -1), class_of.get(str(row["category_id"]))
            score, x, y, width, height = map(float, (row["score"], *row["bbox"]))
            if cls is None:
                raise ValueError(f"category_id is no class of {store.path}")
            if not all(map(math.isfinite, (score, x, y, width, height))):
                raise ValueError("bbox or score is not finite")
            rle = row.get("segmentation") if masks and image >= 0 else None
            if rle is not None and not (isinstance(rle, dict) and rle.get("size") == sizes[image]):
                raise ValueError(f"segmentation is not RLE of its image's size {sizes[image]}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = repr(error) if isinstance(error, KeyError) else error
            raise DataError(f"{path}: detection {number} is malformed ({reason}): {row!r:.200}") from None
        segmentations[number] = rle
        table.append((image, cls, score, x, y, x + width, y + height))
    image, cls, score, *corners = np.array(table, dtype=np.float64).reshape(-1, 7).T
    box = np.stack(corners, axis=1)
    return Detections(image.astype(np.int64), cls.astype(np.int32), score, box), segmentations
