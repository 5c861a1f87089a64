"""A small data set, sound in every part, for tests that spoil one of them."""

import json

import numpy as np
from openimages_files import Folder, row
from PIL import Image

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.store import AnnotationStore

ROWS = [
    row("a", "/m/woman", (0.1, 0.2, 0.5, 0.6)),
    row("a", "/m/man", (0.1, 0.2, 0.5, 0.6), (0, 1, 0, 0, 0)),
    row("b", "/m/man", (0, 0, 1, 1), (0, 0, 1, 0, 0)),
    row("c", "/m/person", (0.25, 0.25, 0.75, 0.75), (1, 0, 0, 0, 0)),
]
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


class Data(Folder):
    """Paths of the files, and the two ways to a store."""

    def __init__(self, root):
        super().__init__(root)
        self.root, self.images = root, root / "images"
        self.images.mkdir()
        generator = np.random.default_rng(0)
        for name in "abc":
            pixels = generator.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(self.images / f"{name}.jpg")
        self.boxes = self.write_boxes(*ROWS)
        self.labels = self.write_labels("a,,/m/dog,1", "b,,/m/dog,0")
        self.classes, self.hierarchy = root / "classes.csv", root / "hierarchy.json"
        self.coco = self.write("coco.json", json.dumps(COCO))
        self.coco_hierarchy = self.write("coco_hierarchy.json", '{"cat": ["animal"], "dog": ["animal"]}')

    def open_images(self, output="store", **options) -> AnnotationStore:
        options = {"force": True, **options}
        return self.prepare(
            self.boxes, image_labels=[self.labels], images=self.images, output=output, **options
        )

    def prepare_coco(self, output="store", **options) -> AnnotationStore:
        return prepare_coco(self.coco, self.images, self.root / output, self.coco_hierarchy, **options)

    def left_over(self) -> list[str]:
        """Names of half-written stores."""
        return [path.name for path in self.root.rglob(".*partial*")]
