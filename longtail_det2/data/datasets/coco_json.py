"""Reading a COCO-form JSON file, with several labels a box, into arrays; what is wrong is collected."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from longtail_det2.data.datasets.coco_findings import CocoFindings
from longtail_det2.data.datasets.lvis_json import compact_segmentation, file_name_in_url, is_lvis_form
from longtail_det2.data.store import ImageLabel, ObjectFlag
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json

Policy = Literal["error", "skip"]
_MOST_PIXELS = 2**31 - 1
_IMAGE_LABELS = {
    "neg_category_ids": int(ImageLabel.ABSENT),
    "pos_category_ids": int(ImageLabel.PRESENT),
    "not_exhaustive_category_ids": int(ImageLabel.NOT_EXHAUSTIVE),
}
"""Lists of an image's classes; where one is in several of them, the last counts."""


@dataclass
class CocoImages:
    """Images in the order of their ids as bytes.

    Attributes:
        ids: identifiers as strings.
        file_names: paths relative to the image root.
        sizes: (n, 2) int32, (height, width); 0 where the file does not say.
        labels: for each image {class index: what is verified about it, an `ImageLabel`}.
    """

    ids: list[str]
    file_names: list[str]
    sizes: np.ndarray
    labels: list[dict[int, int]]

    def label_columns(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The image-level columns of a store, of the images at the places `chosen`."""
        labels = [self.labels[index] for index in chosen.tolist()]
        return {
            "image_label_offsets": np.cumsum([0, *map(len, labels)]),
            "image_label": np.array([label for one in labels for label in one], dtype=np.int32),
            "image_label_status": np.array([said for one in labels for said in one.values()], dtype=np.uint8),
        }


@dataclass
class CocoRows:
    """One row for each label of each annotation.

    Attributes:
        image: (r,) int32 index into `CocoImages`.
        label: (r,) int32 class index.
        box: (r, 4) float64, (x0, y0, x1, y1) in pixels, not clipped.
        flags: (r,) uint8, `ObjectFlag.GROUP_OF` where `iscrowd` or `is_group_of` is set.
        annotation: (r,) objects, ids of the annotations for messages.
        segmentation: (r,) objects, the annotations' masks as they are in the file, unchecked; polygons of
            numbers are arrays of doubles.
        area: (r,) float64 in pixels, NaN where the annotation has none.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    flags: np.ndarray
    annotation: np.ndarray
    segmentation: np.ndarray
    area: np.ndarray

    def select(self, keep: np.ndarray) -> CocoRows:
        """The rows where `keep` (r,) bool is set."""
        return CocoRows(
            self.image[keep],
            self.label[keep],
            self.box[keep],
            self.flags[keep],
            self.annotation[keep],
            self.segmentation[keep],
            self.area[keep],
        )


class CocoFile:
    """A COCO-form file. Entries that are wrong go to `findings` and are left out of what the methods return.

    Attributes:
        path: of the file.
        findings: what was found.
        class_ids: category ids as strings, in the order of the ids.
        class_names: their names.
        categories: their entries by id, in that order.
        is_lvis: whether images list verified classes as LVIS's do.
    """

    def __init__(self, path: Path, findings: CocoFindings) -> None:
        """Reads the file and its categories.

        Raises:
            DataError: no such file, no JSON, or a missing part.
        """
        self.path, self.findings = path, findings
        self._content = _load(path)
        for part in ("images", "annotations", "categories"):
            if not isinstance(self._content.get(part), list):
                raise DataError(
                    f"{path}: has no list {part!r}; a COCO file has images, annotations and categories"
                )
        categories = self._unique("categories", "category")
        order = sorted(categories, key=lambda key: (isinstance(key, str), key))
        self.categories = {key: categories[key] for key in order}
        self.is_lvis = is_lvis_form(self._content["images"])
        self._class_index = {key: index for index, key in enumerate(order)}
        self.class_ids = [str(key) for key in order]
        self.class_names = [self._class_name(categories[key], key) for key in order]

    def read_images(self) -> CocoImages:
        """The images, sorted by id, with their image-level labels.

        `neg_category_ids` are verified absent, `pos_category_ids` verified present, and
        `not_exhaustive_category_ids` present with some, but not all objects in boxes.
        """
        images = self._unique("images", "image")
        keys = sorted(images, key=lambda key: str(key).encode())
        self._image_index = {key: index for index, key in enumerate(keys)}
        sizes = np.array([self._size(images[key], key) for key in keys], dtype=np.int32).reshape(-1, 2)
        names = [self._file_name(images[key], key) for key in keys]
        first: dict[str, Any] = {}
        for name, key in zip(names, keys, strict=True):
            if name and first.setdefault(name, key) != key:
                self.findings.add("same_file", f"image {key!r}: {name!r} is image {first[name]!r} already")
        labels = [self._image_labels(images[key], key) for key in keys]
        return CocoImages([str(key) for key in keys], names, sizes, labels)

    def read_rows(self) -> CocoRows:
        """The annotations, after `read_images`; a second call would find none."""
        image: list[int] = []
        label: list[int] = []
        boxes = array("d")
        flags: list[int] = []
        source: list[Any] = []
        masks: list[Any] = []
        areas = array("d")
        seen: set[Any] = set()
        entries = self._content.pop("annotations")
        for place in range(len(entries)):
            one, entries[place] = (
                entries[place],
                None,
            )  # the entries take more memory than what is made of them
            if not isinstance(one, dict):
                self.findings.add("entry", f"annotations[{place}] is no object")
                continue
            where = self._annotation_name(one, place, seen)
            index = self._find_image(one, where)
            classes = self._classes(one.get("category_ids") or [one.get("category_id")], where)
            box = self._box(one.get("bbox"), where, len(classes))
            if index is None or box is None:
                continue
            image += [index] * len(classes)
            label += classes
            for _ in classes:
                boxes.extend(box)
            flags += [int(ObjectFlag.GROUP_OF) * self._is_group(one, where)] * len(classes)
            source += [where] * len(classes)
            masks += [one.get("segmentation")] * len(classes)
            areas.extend([self._area(one.get("area"), where)] * len(classes))
        return CocoRows(
            np.array(image, dtype=np.int32),
            np.array(label, dtype=np.int32),
            np.frombuffer(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(flags, dtype=np.uint8),
            np.array(source, dtype=object),
            _as_objects(masks),
            np.frombuffer(areas, dtype=np.float64),
        )

    def _unique(self, part: str, word: str) -> dict[Any, Mapping[str, Any]]:
        """Entries of a part by id; ids are different also when they are written as text."""
        entries: dict[Any, Mapping[str, Any]] = {}
        texts: dict[str, Any] = {}
        for place, entry in enumerate(self._content[part]):
            key = entry.get("id") if isinstance(entry, dict) else None
            if not _is_id(key):
                self.findings.add("entry", f"{part}[{place}] has no id (an integer or a string)")
            elif key in entries:
                self.findings.add("repeated_id", f"id {key!r} occurs twice among the {part}")
            elif texts.setdefault(str(key), key) != key:
                example = f"{word} ids {key} and '{key}' cannot both be used"
                self.findings.add("repeated_id", example)
            else:
                entries[key] = entry
        return entries

    def _class_name(self, category: Mapping[str, Any], key: Any) -> str:
        name = category.get("name", key)
        if not _is_id(name):
            self.findings.add("entry", f"category {key!r} has the name {name!r}, which is no text")
            return str(key)
        return str(name)

    def _size(self, image: Mapping[str, Any], key: Any) -> tuple[int, int]:
        height, width = image.get("height"), image.get("width")
        if height is None and width is None:
            return 0, 0
        if not (_is_length(height) and _is_length(width)):
            self.findings.add(
                "size",
                f"image {key!r} has height {height!r} and width {width!r}; both must be positive integers, "
                "or both be left out",
            )
            return 0, 0
        return int(height), int(width)

    def _file_name(self, image: Mapping[str, Any], key: Any) -> str:
        name = image.get("file_name")
        if name is None and "coco_url" in image:
            url = image["coco_url"]
            name = file_name_in_url(url)
            if not is_usable_text(name):
                self.findings.add("file_name", f"image {key!r} has no file_name, but the coco_url {url!r}")
                return ""
        if not isinstance(name, str) or not is_usable_text(name):
            self.findings.add("file_name", f"image {key!r} has no file_name, but {name!r}")
            return ""
        return name

    def _image_labels(self, image: Mapping[str, Any], key: Any) -> dict[int, int]:
        labels: dict[int, int] = {}
        for field, verified in _IMAGE_LABELS.items():
            where = f"image {key!r}, {field}"
            for label in self._classes(image.get(field) or [], where, "unknown_image_label"):
                if labels.setdefault(label, verified) == ImageLabel.ABSENT != verified:
                    example = f"{where} has {self.class_names[label]!r}, which its neg_category_ids have too"
                    self.findings.add("contradiction", example)
                labels[label] = verified
        return labels

    def _annotation_name(self, one: Mapping[str, Any], place: int, seen: set[Any]) -> str:
        key = one.get("id")
        if key is None:
            return f"annotation number {place}"
        if not _is_id(key):
            self.findings.add("entry", f"annotations[{place}] has the id {key!r}, no integer or string")
        elif key in seen:
            self.findings.add("repeated_id", f"annotation id {key!r} occurs twice")
        else:
            seen.add(key)
        return f"annotation {key!r}"

    def _find_image(self, one: Mapping[str, Any], where: str) -> int | None:
        key = one.get("image_id")
        index = self._image_index.get(key) if _is_id(key) else None
        if index is None:
            self.findings.add("unknown_image", f"{where} is on the unknown image {key!r}", repr(key))
        return index

    def _classes(self, categories: object, where: str, unknown: str = "unknown_category") -> list[int]:
        """Class indices of the known categories, each once; the others are findings of the kind `unknown`."""
        if not isinstance(categories, list):
            self.findings.add("entry", f"{where}: category ids must be a list, got {categories!r}")
            return []
        found: dict[int, None] = {}
        for one in categories:
            index = self._class_index.get(one) if _is_id(one) else None
            if index is None:
                example = f"{where} has the unknown category {one!r}"
                self.findings.add(unknown, example, repr(one))
            else:
                found[index] = None
        return list(found)

    def _box(self, box: object, where: str, labels: int) -> list[float] | None:
        values = box if isinstance(box, list) and len(box) == 4 else [None] * 4
        x, y, width, height = (_number(value) for value in values)
        corners = [x, y, x + width, y + height]
        if not all(math.isfinite(value) for value in corners):
            example = f"{where} has the bbox {box!r}; it must be [x, y, width, height]"
            self.findings.add("bad_box", example, count=max(labels, 1))
            return None
        return corners

    def _area(self, value: object, where: str) -> float:
        area = _number(value)
        if 0 < area < math.inf:
            return area
        if value is not None:
            self.findings.add("bad_area", f"{where} has the area {value!r}")
        return math.nan

    def _is_group(self, one: Mapping[str, Any], where: str) -> bool:
        flags = [one.get("iscrowd"), one.get("is_group_of")]
        if not all(flag is None or (isinstance(flag, int) and flag in (0, 1)) for flag in flags):
            self.findings.add("entry", f"{where}: iscrowd and is_group_of must be 0 or 1, got {flags}")
            return False
        return any(flags)


def check_boxes(rows: CocoRows, images: CocoImages, findings: CocoFindings) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to their images and normalises them.

    Args:
        rows: the annotations.
        images: with known sizes.
        findings: takes boxes that have no area inside their image, and those that are cut.

    Returns:
        (boxes (r, 4) float32 as a share of width and height, keep (r,) bool).
    """
    scale = images.sizes[rows.image][:, [1, 0, 1, 0]].astype(np.float64)
    boxes = (np.clip(rows.box, 0, scale) / np.maximum(scale, 1)).astype(np.float32)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    for row in np.flatnonzero(~keep).tolist():
        findings.add("empty_box", f"{_describe_box(rows, images, row)}, which has no area inside its image")
    cut = keep & ((rows.box < -1) | (rows.box > scale + 1)).any(axis=1)
    kind = "corner_boxes" if np.count_nonzero(cut) > max(len(cut) / 4, 1) else "clipped_box"
    for row in np.flatnonzero(cut).tolist():
        findings.add(kind, _describe_box(rows, images, row))
    first = np.all(rows.box[:, 2:] <= 1, axis=1)
    if np.count_nonzero(first) > max(len(rows.box) / 2, 1):
        row = int(np.argmax(first))
        findings.add("share_boxes", _describe_box(rows, images, row), count=int(np.count_nonzero(first)))
    return boxes, keep


def _describe_box(rows: CocoRows, images: CocoImages, row: int) -> str:
    x0, y0, x1, y1 = rows.box[row].tolist()
    height, width = images.sizes[rows.image[row]].tolist()
    return (
        f"{rows.annotation[row]} has the box [{x0:g}, {y0:g}, {x1 - x0:g}, {y1 - y0:g}] "
        f"(x, y, width, height) in an image of {width} x {height} pixels (width x height)"
    )


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path, object_hook=compact_segmentation)
    return content if isinstance(content, dict) else {}


def _as_objects(values: list[Any]) -> np.ndarray:
    """A 1-dimensional array of the objects, also where they are lists of equal length."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_length(value: object) -> TypeGuard[int]:
    return _is_integer(value) and 0 < value <= _MOST_PIXELS


def _is_id(value: object) -> bool:
    """Whether a value can be an id: an integer, or a usable text."""
    return is_usable_text(value) if isinstance(value, str) else _is_integer(value)


def is_usable_text(value: str) -> bool:
    """Whether a text can be an id or a name: it is not empty, and files can hold it."""
    try:
        return value != "" and "\0" not in value and bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return False


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
