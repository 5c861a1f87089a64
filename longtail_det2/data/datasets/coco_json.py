"""Reading and checking a COCO-form JSON file, with several labels a box, into arrays."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.errors import DataError

BadBoxPolicy = Literal["error", "skip"]


@dataclass
class CocoImages:
    """Images in the order of their ids as bytes.

    Attributes:
        ids: identifiers as strings.
        file_names: paths relative to the image root.
        sizes: (n, 2) int32, (height, width); 0 where the file does not say.
        labels: for each image {class index: verified present (True) or absent (False)}.
    """

    ids: list[str]
    file_names: list[str]
    sizes: np.ndarray
    labels: list[dict[int, bool]]


@dataclass
class CocoRows:
    """One row for each label of each annotation.

    Attributes:
        image: (r,) int32 index into `CocoImages`.
        label: (r,) int32 class index.
        box: (r, 4) float64, (x0, y0, x1, y1) in pixels, not clipped.
        flags: (r,) uint8, `ObjectFlag.GROUP_OF` where `iscrowd` or `is_group_of` is set.
        annotation: (r,) objects, ids of the annotations for messages.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    flags: np.ndarray
    annotation: np.ndarray

    def select(self, keep: np.ndarray) -> CocoRows:
        """The rows where `keep` (r,) bool is set."""
        return CocoRows(
            self.image[keep], self.label[keep], self.box[keep], self.flags[keep], self.annotation[keep]
        )


class CocoFile:
    """A COCO-form file whose parts are checked as they are read.

    Attributes:
        path: of the file.
        class_ids: category ids as strings, in the order of the ids.
        class_names: their names.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file and its categories.

        Raises:
            DataError: no such file, no JSON, a missing part, or categories that repeat.
        """
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a JSON file ({error})") from None
        self._content = content if isinstance(content, dict) else {}
        for part in ("images", "annotations", "categories"):
            if not isinstance(self._content.get(part), list):
                raise DataError(
                    f"{path}: has no list {part!r}; a COCO file has images, annotations and categories"
                )
        categories = self._unique("categories")
        order = sorted(categories, key=lambda key: (isinstance(key, str), key))
        self._class_index = {key: index for index, key in enumerate(order)}
        self.class_ids = [str(key) for key in order]
        if len(set(self.class_ids)) != len(order):
            raise DataError(f"{path}: category ids 1 and '1' cannot both be used")
        self.class_names = [str(categories[key].get("name", key)) for key in order]

    def read_images(self) -> CocoImages:
        """The images, sorted by id, with their image-level labels.

        `neg_category_ids` are verified absent; `pos_category_ids` and `not_exhaustive_category_ids` (some,
        but perhaps not all objects have a box) verified present.

        Raises:
            DataError: repeated ids, a missing file name, a size that is no positive integer, unknown
                category.
        """
        images = self._unique("images")
        keys = sorted(images, key=lambda key: str(key).encode())
        self._image_index = {key: index for index, key in enumerate(keys)}
        ids = [str(key) for key in keys]
        repeated = next((one for one, other in itertools.pairwise(ids) if one == other), None)
        if repeated is not None:
            raise DataError(f"{self.path}: image ids {repeated} and '{repeated}' cannot both be used")
        sizes = np.array([self._size(images[key], key) for key in keys], dtype=np.int32).reshape(-1, 2)
        names = [self._file_name(images[key], key) for key in keys]
        labels = [self._image_labels(images[key], key) for key in keys]
        return CocoImages(ids, names, sizes, labels)

    def read_rows(self) -> CocoRows:
        """The annotations, after `read_images`.

        Raises:
            DataError: repeated annotation ids, unknown images or categories, a malformed box.
        """
        image: list[int] = []
        label: list[int] = []
        boxes: list[Sequence[float]] = []
        flags: list[int] = []
        source: list[Any] = []
        seen: set[Any] = set()
        for place, one in enumerate(self._content["annotations"]):
            if not isinstance(one, dict):
                raise DataError(f"{self.path}: annotations[{place}] is no object")
            name = one.get("id", f"number {place}")
            if "id" in one and name in seen:
                raise DataError(f"{self.path}: annotation id {name!r} occurs twice")
            seen.add(name)
            where = f"annotation {name!r}"
            index = self._image_index.get(one.get("image_id"))
            if index is None:
                raise DataError(f"{self.path}: {where} is on the unknown image {one.get('image_id')!r}")
            classes = self._classes(one.get("category_ids") or [one.get("category_id")], where)
            group = bool(one.get("iscrowd", 0)) or bool(one.get("is_group_of", False))
            box = self._box(one.get("bbox"), where)
            image += [index] * len(classes)
            label += classes
            boxes += [box] * len(classes)
            flags += [int(ObjectFlag.GROUP_OF) * group] * len(classes)
            source += [name] * len(classes)
        return CocoRows(
            np.array(image, dtype=np.int32),
            np.array(label, dtype=np.int32),
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(flags, dtype=np.uint8),
            np.array(source, dtype=object),
        )

    def _unique(self, part: str) -> dict[Any, Mapping[str, Any]]:
        """Entries of a part by id."""
        entries: dict[Any, Mapping[str, Any]] = {}
        for place, entry in enumerate(self._content[part]):
            key = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(key, (int, str)) or isinstance(key, bool):
                raise DataError(f"{self.path}: {part}[{place}] has no id (an integer or a string)")
            if key in entries:
                raise DataError(f"{self.path}: id {key!r} occurs twice among the {part}")
            entries[key] = entry
        return entries

    def _size(self, image: Mapping[str, Any], key: Any) -> tuple[int, int]:
        size = (image.get("height", 0), image.get("width", 0))
        known = "height" in image or "width" in image
        if not all(isinstance(one, int) and (one > 0 or not known) for one in size):
            raise DataError(
                f"{self.path}: image {key!r} has height {size[0]!r} and width {size[1]!r}; both must be "
                "positive integers, or both be left out"
            )
        return size

    def _file_name(self, image: Mapping[str, Any], key: Any) -> str:
        name = image.get("file_name")
        if name is None and "coco_url" in image:  # LVIS: .../train2017/000000000001.jpg
            name = "/".join(str(image["coco_url"]).split("/")[-2:])
        if not isinstance(name, str) or not name:
            raise DataError(f"{self.path}: image {key!r} has no file_name")
        return name

    def _image_labels(self, image: Mapping[str, Any], key: Any) -> dict[int, bool]:
        labels: dict[int, bool] = {}
        for field, present in (
            ("neg_category_ids", False),
            ("not_exhaustive_category_ids", True),
            ("pos_category_ids", True),
        ):
            for label in self._classes(image.get(field, []), f"image {key!r}, {field}"):
                labels[label] = present
        return labels

    def _classes(self, categories: object, where: str) -> list[int]:
        if not isinstance(categories, list):
            raise DataError(f"{self.path}: {where}: category ids must be a list, got {categories!r}")
        unknown = [
            one for one in categories if not isinstance(one, (int, str)) or one not in self._class_index
        ]
        if unknown:
            raise DataError(f"{self.path}: {where} has the unknown category {unknown[0]!r}")
        return [self._class_index[one] for one in categories]

    def _box(self, box: object, where: str) -> list[float]:
        numbers = isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)
        if not numbers:
            raise DataError(f"{self.path}: {where} has the bbox {box!r}; it must be [x, y, width, height]")
        x, y, width, height = box  # type: ignore[misc]
        return [x, y, x + width, y + height]


def check_boxes(
    path: Path, rows: CocoRows, images: CocoImages, policy: BadBoxPolicy
) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to their images and normalises them.

    Args:
        path: of the file, for messages.
        rows: the annotations.
        images: with known sizes.
        policy: what to do about boxes that have no area inside their image.

    Returns:
        (boxes (r, 4) float32 as a share of width and height, keep (r,) bool).

    Raises:
        DataError: such a box, if `policy` is "error".
    """
    scale = images.sizes[rows.image][:, [1, 0, 1, 0]].astype(np.float64)
    boxes = (np.clip(rows.box, 0, scale) / np.maximum(scale, 1)).astype(np.float32)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if policy == "error" and not keep.all():
        row = int(np.flatnonzero(~keep)[0])
        height, width = images.sizes[rows.image[row]].tolist()
        raise DataError(
            f"{path}: annotation {rows.annotation[row]!r} has the box {rows.box[row].tolist()} (x0, y0, "
            f"x1, y1), which has no area inside its image of {width} x {height} pixels "
            f"({np.count_nonzero(~keep)} such labels); correct it or let bad boxes be skipped"
        )
    return boxes, keep


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
