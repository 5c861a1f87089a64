"""Annotation stores for counting: objects of your choice, no image files."""

from dataclasses import dataclass, field

import numpy as np

from longtail_det2.data.store import ObjectFlag, write_store

# animal > dog > puppy, pet > dog, pet > fish, car alone.
CLASS_IDS = ["animal", "dog", "puppy", "pet", "fish", "car"]
PARENTS = {"dog": ["animal", "pet"], "puppy": ["dog"], "fish": ["pet"]}
GROUP_OF = int(ObjectFlag.GROUP_OF)


@dataclass
class Picture:
    """One image; objects are (box as a share of a side of 40, labels, flags)."""

    name: str
    objects: list = field(default_factory=list)


def build_store(folder, pictures, class_ids=CLASS_IDS, parents=PARENTS, name="store"):
    """Writes the store `folder / name`."""
    objects = [one for picture in pictures for one in picture.objects]
    columns = {
        "image_id": np.array([picture.name for picture in pictures], dtype="S"),
        "file_name": np.array([f"{picture.name}.png" for picture in pictures], dtype="S"),
        "image_size": np.full((len(pictures), 2), 40),
        "object_offsets": np.cumsum([0] + [len(picture.objects) for picture in pictures]),
        "box": np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4) / 40,
        "flags": np.array([flags for _, _, flags in objects], np.uint8),
        "label_offsets": np.cumsum([0] + [len(labels) for _, labels, _ in objects]),
        "label": np.array([label for _, labels, _ in objects for label in labels], np.int32),
        "image_label_offsets": np.zeros(len(pictures) + 1, np.int64),
        "image_label": np.zeros(0, np.int32),
        "image_label_status": np.zeros(0, np.uint8),
    }
    return write_store(folder / name, columns, class_ids, parents=parents, image_root=folder)


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
        pictures.append(Picture(f"{index:03d}", objects))
    return pictures
