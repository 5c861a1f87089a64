"""Options of a small generated data set, and slow, obvious readers of what the generator writes."""

import csv
import json

import numpy as np
from pycocotools import mask as coco_mask

from longtail_det2.shapes import ShapesOptions

OPTIONS = ShapesOptions(
    train_images=150,
    validation_images=40,
    image_size=96,
    imbalance=20.0,
    missing_leaf_rate=0.1,
    co_label_rate=0.15,
    confusion_rate=0.05,
    group_of_rate=0.05,
    num_leaves=24,
    seed=3,
)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text())


def polygons_to_mask(polygons, size):
    """Even-odd test of pixel centres, one polygon after the other: slow and obvious."""
    mask = np.zeros((size, size), dtype=bool)
    centres = np.arange(size) + 0.5
    for polygon in polygons:
        x, y = np.array(polygon[0::2], dtype=float), np.array(polygon[1::2], dtype=float)
        inside = np.zeros((size, size), dtype=bool)
        for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
            if x0 == x1 and y0 != y1:
                rows = (centres > min(y0, y1)) & (centres < max(y0, y1))
                inside ^= rows[:, None] & (centres > x0)[None, :]
        mask |= inside
    return mask


def rle_to_mask(rle):
    return coco_mask.decode(rle).astype(bool)
