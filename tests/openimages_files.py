"""Open Images annotation files of a few rows, and what a store made of them."""

import json
from pathlib import Path

from PIL import Image

from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.store import AnnotationStore

CLASSES = '/m/person,Person\n/m/man,Man\n/m/woman,Woman\n/m/chips,"Chips, ""French"""\n/m/dog,Dog\n'
TREE = {
    "LabelName": "/m/entity",
    "Subcategory": [
        {"LabelName": "/m/person", "Subcategory": [{"LabelName": "/m/man"}, {"LabelName": "/m/woman"}]},
        {"LabelName": "/m/chips"},
        {"LabelName": "/m/dog"},
    ],
}
PERSON, MAN, WOMAN, CHIPS, DOG = range(5)
COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def row(image="a", label="/m/dog", box=(0.1, 0.2, 0.3, 0.4), flags=(0, 0, 0, 0, 0)):
    x0, y0, x1, y1 = box
    return f"{image},xclick,{label},1,{x0},{x1},{y0},{y1},{','.join(map(str, flags))}"


class Folder:
    """Annotation files in a folder, with what most tests do not care about filled in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.write("classes.csv", CLASSES)
        self.write("hierarchy.json", json.dumps(TREE))

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_boxes(self, *rows: str, name: str = "boxes.csv", end: str = "\n") -> Path:
        return self.write(name, "\n".join([COLUMNS, *rows]) + end)

    def write_labels(self, *rows: str) -> Path:
        return self.write("labels.csv", "\n".join(["ImageID,Source,LabelName,Confidence", *rows]) + "\n")

    def image(self, name: str, size=(40, 30), **save) -> Path:
        path = self.path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path, **save)
        return path

    def prepare(
        self, *boxes: Path, image_labels=(), images=None, output="store", **options
    ) -> AnnotationStore:
        options.setdefault("progress", False)
        options.setdefault("workers", 1)
        return prepare_openimages(
            boxes or [self.path / "boxes.csv"],
            image_labels,
            options.pop("classes", self.path / "classes.csv"),
            options.pop("hierarchy", self.path / "hierarchy.json"),
            images,
            self.path / output,
            **options,
        )


def objects(store: AnnotationStore) -> list:
    """(image id, box, flags, labels) of each object."""
    found = []
    for image in range(len(store)):
        for index in range(*store.object_offsets[image : image + 2].tolist()):
            begin, end = store.label_offsets[index : index + 2].tolist()
            box = tuple(round(value, 6) for value in store.boxes[index].tolist())
            labels = store.labels[begin:end].tolist()
            found.append((store.image_ids[image].decode(), box, int(store.flags[index]), labels))
    return found


def image_labels(store: AnnotationStore, image: int) -> list[tuple[int, int]]:
    part = slice(*store.image_label_offsets[image : image + 2].tolist())
    pairs = zip(store.image_labels[part].tolist(), store.image_label_status[part].tolist(), strict=True)
    return list(pairs)
