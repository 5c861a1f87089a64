"""A small data set, sound in every part, for tests that spoil one of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.store import AnnotationStore

HEADER = "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
ROWS = [
    "a,/m/dog,1,0.1,0.5,0.2,0.6,0,0,0",
    "a,/m/cat,1,0.1,0.5,0.2,0.6,0,1,0",
    "b,/m/cat,1,0,1,0,1,0,0,1",
    "c,/m/animal,1,0.25,0.75,0.25,0.75,1,0,0",
]
CLASSES = "/m/animal,Animal\n/m/cat,Cat\n/m/dog,Dog\n"
HIERARCHY = {"/m/cat": ["/m/animal"], "/m/dog": ["/m/animal"]}
COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48, "neg_category_ids": [3]},
        {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "c.jpg", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_ids": [1, 2], "bbox": [8, 4, 16, 8]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 64, 48], "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 3, "bbox": [10.5, 10, 20, 20]},
    ],
    "categories": [{"id": 1, "name": "animal"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}],
}


@dataclass
class Data:
    """Paths of the files, and the two ways to a store."""

    root: Path

    def __post_init__(self):
        self.images = self.root / "images"
        self.images.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for name in "abc":
            pixels = generator.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(self.images / f"{name}.jpg")
        self.boxes = self.write("boxes.csv", "\n".join([HEADER, *ROWS]) + "\n")
        self.labels = self.write("labels.csv", "ImageID,LabelName,Confidence\na,/m/dog,1\nb,/m/dog,0\n")
        self.classes = self.write("classes.csv", CLASSES)
        self.hierarchy = self.write("hierarchy.json", json.dumps(HIERARCHY))
        self.coco = self.write("coco.json", json.dumps(COCO))
        self.coco_hierarchy = self.write(
            "coco_hierarchy.json", json.dumps({"cat": ["animal"], "dog": ["animal"]})
        )

    def write(self, name, content):
        path = self.root / name
        path.write_text(content) if isinstance(content, str) else path.write_bytes(content)
        return path

    def open_images(self, output="store", **options) -> AnnotationStore:
        options = {"workers": 1, "progress": False, "force": True, **options}
        paths = [self.labels], self.classes, self.hierarchy, self.images, self.root / output
        return prepare_openimages([self.boxes], *paths, **options)

    def prepare_coco(self, output="store", **options) -> AnnotationStore:
        return prepare_coco(self.coco, self.images, self.root / output, self.coco_hierarchy, **options)

    def left_over(self) -> list[str]:
        """Names of half-written stores."""
        return [path.name for path in self.root.rglob(".*partial*")]
