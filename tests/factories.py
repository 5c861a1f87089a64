"""Tiny data sets of every form: annotation stores, COCO and LVIS JSON files, images."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.store import AnnotationStore, ObjectFlag, write_store

GROUP_OF = int(ObjectFlag.GROUP_OF)
CLASS_IDS = ["animal", "dog", "puppy", "pet", "fish", "car"]
ANIMAL, DOG, PUPPY, PET, FISH, CAR = range(6)
PARENTS = {"dog": ["animal", "pet"], "puppy": ["dog"], "fish": ["pet"]}


def store_columns(image_ids=("a",), size=(40, 40), objects=(), image_labels=(), **changes):
    """Columns of a store.

    objects: (position of the image, box in shares of the sides, labels, flags); image_labels: (position,
    class, status); both in the order of the images.
    """
    positions = np.arange(len(image_ids) + 1)
    label_counts = [len(labels) for _, _, labels, _ in objects]
    return {
        "image_id": np.array(image_ids, dtype=str),
        "file_name": np.array([f"{name}.png" for name in image_ids], dtype=str),
        "image_size": np.broadcast_to(np.array(size, np.int32), (len(image_ids), 2)),
        "object_offsets": np.searchsorted([image for image, *_ in objects], positions),
        "box": np.array([box for _, box, _, _ in objects], np.float32).reshape(-1, 4),
        "flags": np.array([flags for *_, flags in objects], np.uint8),
        "label_offsets": np.cumsum([0, *label_counts]),
        "label": np.array([label for _, _, labels, _ in objects for label in labels], np.int32),
        "image_label_offsets": np.searchsorted([image for image, _, _ in image_labels], positions),
        "image_label": np.array([label for _, label, _ in image_labels], np.int32),
        "image_label_status": np.array([status for *_, status in image_labels], np.uint8),
        **changes,
    }


@dataclass
class Picture:
    """One image: objects are (box in pixels, labels, flags)."""

    name: str
    height: int = 40
    width: int = 40
    objects: list = field(default_factory=list)
    present: list = field(default_factory=list)
    absent: list = field(default_factory=list)


PICTURES = [
    Picture("a", 40, 60, [((6, 4, 30, 20), [PUPPY, DOG], 0), ((0, 0, 60, 40), [CAR], GROUP_OF)]),
    Picture("b", 40, 60, [], [FISH], [CAR]),
    Picture("c", 64, 48, [((12, 16, 24, 32), [FISH, CAR], 0)]),
    Picture("d", 64, 48, [((0, 0, 48, 64), [ANIMAL], 1 | 2), ((24, 32, 36, 48), [DOG], 0)], [PET]),
    Picture("e", 30, 30, [((3, 3, 27, 27), [CAR], 0)]),
]


def build_store(
    folder, pictures=PICTURES, class_ids=CLASS_IDS, parents=PARENTS, name="store", images=True, **header
) -> AnnotationStore:
    """Writes the store, and the images (the first channel of each pixel is its column)."""
    root = folder / f"{name}-images"
    root.mkdir(parents=True, exist_ok=True)
    for picture in pictures if images else ():
        pixels = np.zeros((picture.height, picture.width, 3), np.uint8)
        pixels[..., 0] = np.arange(picture.width)
        Image.fromarray(pixels).save(root / f"{picture.name}.png")
    objects = [
        (row, np.array(box) / np.tile([picture.width, picture.height], 2), labels, flags)
        for row, picture in enumerate(pictures)
        for box, labels, flags in picture.objects
    ]
    verified = [
        (row, label, status)
        for row, picture in enumerate(pictures)
        for labels, status in ((picture.present, 1), (picture.absent, 0))
        for label in labels
    ]
    sizes = np.array([(one.height, one.width) for one in pictures], np.int32).reshape(-1, 2)
    columns = store_columns([one.name for one in pictures], sizes, objects, verified)
    return write_store(folder / name, columns, class_ids, parents=parents, image_root=root, **header)


LABELLED_PICTURES = [
    Picture("a", 40, 60, present=[DOG, CAR]),
    Picture("b", 40, 60, present=[FISH]),
    Picture("c", 64, 48, present=[DOG, PUPPY, FISH]),
    Picture("d", 30, 30),
]


def image_label_store(folder, pictures=LABELLED_PICTURES, **options) -> AnnotationStore:
    """Writes a store of labels of whole images, and the images."""
    return build_store(folder, pictures, **{"parents": None, "form": "image_labels", **options})


def random_pictures(count=200, num_classes=6, seed=0, size=(8, 8)):
    """Images with a long-tailed number of objects and labels; some are empty, a third is landscape."""
    generator = np.random.default_rng(seed)
    weights = 0.5 ** np.arange(num_classes)
    pictures = []
    for index in range(count):
        objects = []
        for _ in range(int(generator.integers(0, 4))):
            k = int(generator.integers(1, 3))
            labels = generator.choice(num_classes, size=k, replace=False, p=weights / weights.sum()).tolist()
            objects.append(((0, 0, 4, 4), labels, 0))
        height, width = size if index % 3 else (size[0], size[1] + 4)
        pictures.append(Picture(f"{index:05d}", height, width, objects))
    return pictures


def crowded_pictures(seed, count=30, num_classes=6, most=9):
    """Images with many overlapping objects of up to four labels, some of them groups, in random order."""
    generator = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        objects = []
        for _ in range(int(generator.integers(0, most))):
            corner = generator.choice([0.0, 8.0], 2) + generator.choice([0, 0.5, 1], 2)
            size = generator.choice([6.0, 6.0, 7.0, 10.0], 2)
            labels = generator.choice(num_classes, int(generator.choice([1, 1, 1, 2, 3, 4])), replace=False)
            flag = GROUP_OF if generator.random() < 0.25 else int(generator.choice([0, 1, 8]))
            objects.append(((*corner, *(corner + size)), labels.tolist(), flag))
        pictures.append(Picture(f"{index:03d}", 40, 40, objects))
    return pictures


def write_images(folder: Path, content) -> None:
    """Draws the images that a COCO- or LVIS-form content lists and that are not there yet."""
    for one in content["images"]:
        path = folder / one["file_name"]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (one["width"], one["height"])).save(path)


def json_store(folder: Path, content, hierarchy=None, name="store", images="", **options) -> AnnotationStore:
    """Writes `content` to `name`.json, its images if no folder has them, and makes the store `name`."""
    if images == "":
        write_images(folder, content)
        images = folder
    (folder / f"{name}.json").write_text(json.dumps(content))
    if hierarchy is not None:
        (folder / "hierarchy.json").write_text(json.dumps(hierarchy))
        hierarchy = folder / "hierarchy.json"
    return prepare_coco(folder / f"{name}.json", images, folder / name, hierarchy, **options)
