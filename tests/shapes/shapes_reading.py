"""Options of a small generated data set, and readers of what the generator writes."""

import csv
import dataclasses
import json

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
FEW = dataclasses.replace(OPTIONS, train_images=80, validation_images=20)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text())


def polygons_to_mask(polygons, height, width):
    return rle_to_mask(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def rle_to_mask(rle):
    return coco_mask.decode(rle).astype(bool)
