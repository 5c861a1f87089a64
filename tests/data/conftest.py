"""A small annotation store with images, built object by object."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import ObjectFlag, write_store

# animal > dog > puppy, pet > dog, pet > fish, car alone.
CLASS_IDS = ["animal", "dog", "puppy", "pet", "fish", "car"]
PARENTS = {"dog": ["animal", "pet"], "puppy": ["dog"], "fish": ["pet"]}


@dataclass
class Picture:
    """One image: objects are (box in pixels, labels, flags)."""

    name: str
    height: int
    width: int
    objects: list = field(default_factory=list)
    present: list = field(default_factory=list)
    absent: list = field(default_factory=list)


PICTURES = [
    Picture("a", 40, 60, [((6, 4, 30, 20), [2, 1], 0), ((0, 0, 60, 40), [5], int(ObjectFlag.GROUP_OF))]),
    Picture("b", 40, 60, [], [4], [5]),
    Picture("c", 64, 48, [((12, 16, 24, 32), [4, 5], 0)]),
    Picture("d", 64, 48, [((0, 0, 48, 64), [0], 1 | 2), ((24, 32, 36, 48), [1], 0)], [3], []),
    Picture("e", 30, 30, [((3, 3, 27, 27), [5], 0)]),
]


def build_store(folder, pictures=PICTURES, class_ids=CLASS_IDS, parents=PARENTS, name="store"):
    """Writes the images (each pixel's first channel is its column) and the store."""
    images = folder / f"{name}-images"
    images.mkdir(parents=True, exist_ok=True)
    objects = [one for picture in pictures for one in picture.objects]
    for picture in pictures:
        pixels = np.zeros((picture.height, picture.width, 3), np.uint8)
        pixels[..., 0] = np.arange(picture.width)
        Image.fromarray(pixels).save(images / f"{picture.name}.png")
    boxes = [
        np.array(box) / np.tile([picture.width, picture.height], 2)
        for picture in pictures
        for box, _, _ in picture.objects
    ]
    verified = [[(c, 1) for c in picture.present] + [(c, 0) for c in picture.absent] for picture in pictures]
    columns = {
        "image_id": np.array([picture.name for picture in pictures]),
        "file_name": np.array([f"{picture.name}.png" for picture in pictures]),
        "image_size": np.array([(p.height, p.width) for p in pictures], np.int32).reshape(-1, 2),
        "object_offsets": np.cumsum([0] + [len(picture.objects) for picture in pictures]),
        "box": np.array(boxes, np.float32).reshape(-1, 4),
        "flags": np.array([flags for _, _, flags in objects], np.uint8),
        "label_offsets": np.cumsum([0] + [len(labels) for _, labels, _ in objects]),
        "label": np.array([label for _, labels, _ in objects for label in labels], np.int32),
        "image_label_offsets": np.cumsum([0] + [len(one) for one in verified]),
        "image_label": np.array([c for one in verified for c, _ in one], np.int32),
        "image_label_status": np.array([p for one in verified for _, p in one], np.uint8),
    }
    return write_store(folder / name, columns, class_ids, parents=parents, image_root=images)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return build_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def make_store(tmp_path):
    def make(*args, **kwargs):
        return build_store(tmp_path, *args, **kwargs)

    return make


@pytest.fixture(scope="session")
def pet_hierarchy():
    return LabelHierarchy.from_json(PARENTS, CLASS_IDS)


@pytest.fixture
def picture():
    return Picture


def random_pictures(count=200, num_classes=6, seed=0, size=(8, 8)):
    """Images with a long-tailed number of objects and labels, some of them empty."""
    generator = np.random.default_rng(seed)
    weights = 0.5 ** np.arange(num_classes)
    pictures = []
    for index in range(count):
        objects = []
        for _ in range(int(generator.integers(0, 4))):
            k = int(generator.integers(1, 3))
            labels = generator.choice(num_classes, size=k, replace=False, p=weights / weights.sum()).tolist()
            objects.append(((0, 0, 4, 4), labels, 0))
        height, width = size if index % 3 else (size[0], size[1] + 4)  # a third is landscape
        pictures.append(Picture(f"{index:05d}", height, width, objects))
    return pictures


@pytest.fixture(scope="session")
def random_store(tmp_path_factory):
    return build_store(tmp_path_factory.mktemp("random"), random_pictures())
