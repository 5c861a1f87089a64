"""Entries of a COCO or LVIS JSON file, checked one by one: sound ones become arrays, others become issues."""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from longtail_det2.data.images import read_image_sizes
from longtail_det2.data.issues import Issues, Kind
from longtail_det2.data.masks import Segmentation, check_segmentation
from longtail_det2.data.store import ImageLabel, ObjectFlag
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json
from longtail_det2.utils.ragged import offsets_of

KINDS = {
    "entry": Kind("malformed entries", "correct them"),
    "repeated_id": Kind("ids that occur more than once", "give each entry an id of its own"),
    "file_name": Kind("images without a usable file_name", "it must be a path below the image folder"),
    "size": Kind("images with a malformed size", "height and width are numbers of pixels; or leave both out"),
    "no_size": Kind("images without height and width", "add them, or give the image folder"),
    "unknown_image": Kind("annotations on images that are not listed", "add the images"),
    "unknown_category": Kind("labels of categories that are not listed", "add the categories"),
    "frequency": Kind("categories whose frequency is not 'r', 'c' or 'f'", "correct them, or leave all out"),
    "box": Kind("bad boxes", "bbox is [x, y, width, height] in pixels, with area inside the image"),
    "mask": Kind("malformed or empty segmentations", "they are lists of polygons, or RLE of the whole image"),
    "image_file": Kind("image files that are missing or unreadable", "complete the image folder"),
    "other_size": Kind("image files of another size than annotated", "annotate upright images as they are"),
    "area": Kind("areas that are not positive numbers", "that of the mask or box is taken", "warning"),
    "cut_box": Kind("boxes that reach out of their image", "they are cut; is bbox x, y, w, h?", "warning"),
    "tiny_box": Kind("boxes inside the first pixel", "bbox is in pixels, not a share of it", "warning"),
    "equal_boxes": Kind(
        "boxes equal to another one of their image", "--merge-equal-boxes makes one object of them", "warning"
    ),
    "added_class": Kind("classes that only the hierarchy names", "misspelt parents show here", "warning"),
    "unused_class": Kind("classes without objects", "they cannot be learnt from these data", "warning"),
    "empty_image": Kind("images without objects", "training leaves them out", "warning"),
}
_IMAGE_LABELS = {
    "neg_category_ids": int(ImageLabel.ABSENT),
    "pos_category_ids": int(ImageLabel.PRESENT),
    "not_exhaustive_category_ids": int(ImageLabel.NOT_EXHAUSTIVE),
}
"""Lists of classes of an image; where one is in several of them, the last counts."""
_LEAST_SHARE = 2.0**-23
"""Least width and height of a box: ends that differ by it differ in single precision too."""
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass
class CocoImages:
    """Images in the order of their ids as bytes."""

    ids: list[str]
    file_names: list[str]  # relative to the image root, "" where there is no usable one
    sizes: np.ndarray  # (n, 2) int32, (height, width); 0 where the file does not say
    labels: list[dict[int, int]]  # per image {class index: `ImageLabel`}
    keep: np.ndarray  # (n,) bool, images that are usable

    def columns(self) -> dict[str, np.ndarray]:
        """The store's image columns of the images to keep, without offsets of objects."""
        kept = np.flatnonzero(self.keep).tolist()
        labels = [self.labels[index] for index in kept]
        status = [value for one in labels for value in one.values()]
        return {
            "image_id": np.array([self.ids[index].encode() for index in kept], dtype=np.bytes_),
            "file_name": np.array([self.file_names[index].encode() for index in kept], dtype=np.bytes_),
            "image_size": self.sizes[self.keep],
            "image_label_offsets": offsets_of(np.array([len(one) for one in labels], dtype=np.int64)),
            "image_label": np.array([label for one in labels for label in one], dtype=np.int32),
            "image_label_status": np.array(status, dtype=np.uint8),
        }


@dataclass
class CocoAnnotations:
    """One row per sound annotation of a kept image."""

    image: np.ndarray  # (a,) int32, index among the images that are kept
    box: np.ndarray  # (a, 4) float32, (x0, y0, x1, y1) as a share of width and height, inside the image
    flags: np.ndarray  # (a,) uint8, `ObjectFlag.GROUP_OF` where `iscrowd` or `is_group_of` is set
    area: np.ndarray  # (a,) float64 in pixels, NaN where the annotation has none
    label_offsets: np.ndarray  # (a + 1,) int64; annotation i has the labels [i], [i + 1] of `label`
    label: np.ndarray  # (l,) int32 class indices
    masks: list[Segmentation | None]  # None where there is none, or a bad one


class CocoFile:
    """A COCO or LVIS file; entries that are wrong go to `issues` and are left out.

    Ids are compared as numbers where they are written as one: 7, 7.0 and "7" are the same id.

    Attributes:
        issues: what was found.
        categories: category entries by id, in the order of the ids.
        class_ids, class_names: their ids as strings, and names.
        num_images, num_annotations: entries in the file.
        is_lvis: images list verified classes as LVIS's do.
    """

    def __init__(self, path: Path, image_root: str | None, issues: Issues) -> None:
        """Read the file and its categories; `image_root` is an absolute path.

        Raises:
            DataError: no such file, no JSON, or a part is missing or empty.
        """
        content = read_json(path, object_hook=compact_segmentation)
        self._content: dict[str, Any] = content if isinstance(content, dict) else {}
        for part in ("images", "annotations", "categories"):
            entries = self._content.get(part)
            if not isinstance(entries, list):
                raise DataError(f"{path}: has no list {part!r}; COCO has images, annotations, categories")
            if not entries and part != "annotations":
                raise DataError(f"{path}: the list {part!r} is empty: there is nothing to train on")
        self._image_root, self.issues = image_root, issues
        categories = self._unique("categories")
        order = sorted(categories, key=lambda key: (isinstance(key, str), key))
        self.categories = {key: categories[key] for key in order}
        self.class_ids = [str(key) for key in order]
        self._class_index = {key: index for index, key in enumerate(order)}
        self.class_names = [self._class_name(key) for key in order]
        self.num_images, self.num_annotations = (len(self._content[p]) for p in ("images", "annotations"))
        images = (image for image in self._content["images"] if isinstance(image, dict))
        said = {name for image in images for name in _IMAGE_LABELS if name in image}
        self.is_lvis = bool(said) and "pos_category_ids" not in said

    def read_images(self) -> CocoImages:
        """The images with their image-level labels: absent, present, or present and not exhaustive."""
        images = self._unique("images")
        keys = sorted(images, key=lambda key: str(key).encode())
        self._image_index = {key: index for index, key in enumerate(keys)}
        names = [self._file_name(images[key], key) for key in keys]
        sizes = np.array([self._size(images[key], key) for key in keys], dtype=np.int32).reshape(-1, 2)
        keep = np.array([name != "" for name in names], dtype=bool) & (sizes >= 0).all(axis=1)
        labels = [self._image_labels(images[key], key) for key in keys]
        return CocoImages([str(key) for key in keys], names, sizes, labels, keep)

    def read_annotations(self, images: CocoImages, with_masks: bool) -> CocoAnnotations:
        """The annotations, after `read_images`; a second call would find none."""
        places, labels, counts, flags = [], [], [], []
        masks: list[Segmentation | None] = []
        boxes, areas = array("d"), array("d")
        seen: set[Any] = set()
        new_place = np.where(images.keep, np.cumsum(images.keep) - 1, -1).tolist()
        all_sizes = images.sizes.tolist()
        entries = self._content["annotations"]
        for place in range(len(entries)):
            one, entries[place] = entries[place], None  # the entries take more memory than the arrays
            name, image = self._locate(one, place, seen)
            if not name:
                continue
            classes = self._classes(one.get("category_ids") or [one.get("category_id")], name)
            if not classes or not images.keep[image]:
                continue
            height, width = all_sizes[image]
            box = self._box(one.get("bbox"), height, width, name)
            if box is None:
                continue
            places.append(new_place[image])
            labels += classes
            counts.append(len(classes))
            boxes.extend(box)
            flags.append(int(ObjectFlag.GROUP_OF) * self._is_group(one, name))
            areas.append(self._area(one.get("area"), name))
            masks.append(self._mask(one.get("segmentation"), height, width, name) if with_masks else None)
        if 2 * self.issues.count("tiny_box") <= len(places):
            self.issues.found.pop("tiny_box", None)  # one or two such boxes may be meant
        return CocoAnnotations(
            np.array(places, dtype=np.int32),
            np.frombuffer(boxes, dtype=np.float64).reshape(-1, 4).astype(np.float32),
            np.array(flags, dtype=np.uint8),
            np.frombuffer(areas, dtype=np.float64),
            offsets_of(np.array(counts, dtype=np.int64)),
            np.array(labels, dtype=np.int32),
            masks,
        )

    def add_object_labels(self, images: CocoImages) -> None:
        """Add the classes of the objects to the labels of their images, after `read_images`.

        Objects count by the rule of COCO-MLT: an area above 0, if it is given, a box at least a pixel wide
        and high, no `ignore`; crowds count.
        """
        seen: set[Any] = set()
        for place, one in enumerate(self._content["annotations"]):
            name, image = self._locate(one, place, seen)
            if not name or one.get("ignore"):
                continue
            if (corners := _corners(one.get("bbox"))) is None:
                self.issues.add("box", f"{name} has the bbox {one.get('bbox')!r}")
                continue
            classes = self._classes(one.get("category_ids") or [one.get("category_id")], name)
            area = one.get("area")
            has_area = not isinstance(area, (int, float)) or area > 0
            if has_area and min(corners[2] - corners[0], corners[3] - corners[1]) >= 1:
                images.labels[image].update(dict.fromkeys(classes, int(ImageLabel.PRESENT)))

    def _locate(self, one: Any, place: int, seen: set[Any]) -> tuple[str, int]:
        """Words for an annotation and the index of its image; "" for what cannot be used."""
        if not isinstance(one, dict):
            self.issues.add("entry", f"annotations[{place}] is no object")
            return "", -1
        name = self._annotation_name(one, place, seen)
        image = self._image_index.get(to_key(one.get("image_id")))
        if image is None and name:
            self.issues.add("unknown_image", f"{name} is on the unknown image {one.get('image_id')!r}")
        return ("", -1) if image is None else (name, image)

    def _unique(self, part: str) -> dict[Any, Mapping[str, Any]]:
        """Entries of a part by id."""
        entries: dict[Any, Mapping[str, Any]] = {}
        for place, entry in enumerate(self._content[part]):
            key = to_key(entry.get("id")) if isinstance(entry, dict) else None
            if key is None:
                self.issues.add("entry", f"{part}[{place}] has no id (an integer or a text)")
            elif key in entries:
                self.issues.add("repeated_id", f"id {key!r} occurs twice among the {part}")
            else:
                entries[key] = entry
        return entries

    def _class_name(self, key: Any) -> str:
        name = self.categories[key].get("name", str(key))
        if not isinstance(name, str) or not is_usable_text(name):
            self.issues.add("entry", f"category {key!r} has the name {name!r}, which is no text")
            return str(key)
        return name

    def _file_name(self, image: Mapping[str, Any], key: Any) -> str:
        """Path below the image root; "" where there is none."""
        given = image.get("file_name")
        if given is None:
            name = file_name_in_url(given := image.get("coco_url"))
        else:
            name = given if isinstance(given, str) and is_usable_text(given) else ""
        below = file_below(self._image_root, name)
        if not name:
            self.issues.add("file_name", f"image {key!r} has the file_name {given!r}")
        elif not below:
            self.issues.add("file_name", f"image {key!r} has the file_name {name!r} outside the image folder")
        return below

    def _size(self, image: Mapping[str, Any], key: Any) -> tuple[int, int]:
        """(height, width); 0 where it is unknown, -1 where it is wrong."""
        values = [image.get("height"), image.get("width")]
        if values == [None, None]:
            return 0, 0
        height, width = (to_key(value) if not isinstance(value, str) else None for value in values)
        if not all(isinstance(one, int) and 0 < one < 2**31 for one in (height, width)):
            self.issues.add("size", f"image {key!r} has height {values[0]!r} and width {values[1]!r}")
            return -1, -1
        return height, width  # type: ignore[return-value]

    def _image_labels(self, image: Mapping[str, Any], key: Any) -> dict[int, int]:
        labels: dict[int, int] = {}
        for name, status in _IMAGE_LABELS.items():
            if not image.get(name):
                continue
            for label in self._classes(image[name], f"image {key!r}, {name}"):
                labels[label] = status
        return labels

    def _annotation_name(self, one: Mapping[str, Any], place: int, seen: set[Any]) -> str:
        """Words for an annotation; "" where its id is wrong."""
        given = one.get("id")
        if given is None:
            return f"annotation number {place}"
        key = to_key(given)
        if key is None:
            self.issues.add("entry", f"annotations[{place}] has the id {given!r}, no integer or text")
        elif key in seen:
            self.issues.add("repeated_id", f"annotation id {key!r} occurs twice")
        else:
            seen.add(key)
            return f"annotation {key!r}"
        return ""

    def _classes(self, categories: object, where: str) -> list[int]:
        """Class indices of the known categories, each once."""
        if not isinstance(categories, list):
            self.issues.add("entry", f"{where}: category ids must be a list, got {categories!r}")
            return []
        found: dict[int, None] = {}
        for one in categories:
            index = self._class_index.get(to_key(one))
            if index is None:
                self.issues.add("unknown_category", f"{where} has the unknown category {one!r}")
            else:
                found[index] = None
        return list(found)

    def _box(self, given: object, height: int, width: int, where: str) -> list[float] | None:
        """(x0, y0, x1, y1) as shares of width and height, cut at the border; None for a bad box."""
        corners = _corners(given)
        if corners is None:
            self.issues.add("box", f"{where} has the bbox {given!r}")
            return None
        sides = width, height, width, height
        box = [min(max(one, 0.0), side) / side for one, side in zip(corners, sides, strict=True)]
        kind = ""
        if min(box[2] - box[0], box[3] - box[1]) < _LEAST_SHARE:
            kind = "box"
        elif max(corners[2:]) <= 1:
            kind = "tiny_box"
        elif min(corners) < -1 or corners[2] > width + 1 or corners[3] > height + 1:
            kind = "cut_box"
        if kind:
            image = f"an image of {width} x {height} pixels (width x height)"
            self.issues.add(kind, f"{where} has the box {given} in {image}")
        return None if kind == "box" else box

    def _mask(self, given: object, height: int, width: int, where: str) -> Segmentation | None:
        if not given or given == [[]]:
            return None
        try:
            mask, problem = check_segmentation(given, height, width), "without area inside its image"
        except ValueError as error:
            mask, problem = None, str(error)
        if mask is None:
            self.issues.add("mask", f"{where} has a segmentation {problem}")
        return mask

    def _area(self, value: object, where: str) -> float:
        with suppress(OverflowError):
            if type(value) in (int, float) and 0 < (area := float(value)) < math.inf:  # type: ignore[arg-type]
                return area
        if value is not None:
            self.issues.add("area", f"{where} has the area {value!r}")
        return math.nan

    def _is_group(self, one: Mapping[str, Any], where: str) -> bool:
        flags = [one.get("iscrowd") or 0, one.get("is_group_of") or 0]
        if not all(isinstance(flag, (int, float)) and flag in (0, 1) for flag in flags):
            self.issues.add("entry", f"{where}: iscrowd and is_group_of must be 0 or 1, got {flags}")
            return False
        return any(flags)


def check_image_files(images: CocoImages, root: Path | None, issues: Issues, workers: int) -> None:
    """Compare the annotated sizes with the files below `root`; changes `images.sizes` and `images.keep`."""
    unknown = (images.sizes == 0).any(axis=1)
    if root is None:
        for index in np.flatnonzero(unknown & images.keep).tolist():
            issues.add("no_size", f"image {images.ids[index]!r} has no height and width")
        images.keep &= ~unknown
        return
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    places = np.flatnonzero(images.keep)
    names: Any = np.array([images.file_names[index].encode() for index in places.tolist()], dtype=np.bytes_)
    sizes = np.zeros_like(images.sizes)
    sizes[places], unreadable = read_image_sizes(root, names, workers)
    for place, reason in unreadable:
        index = int(places[place])
        issues.add("image_file", f"{root / images.file_names[index]}: cannot read the image ({reason})")
        images.keep[index] = False
    differ = images.keep & ~unknown & (sizes != images.sizes).any(axis=1)
    for index in np.flatnonzero(differ).tolist():
        (height, width), (real_height, real_width) = images.sizes[index].tolist(), sizes[index].tolist()
        file = root / images.file_names[index]
        example = f"image {images.ids[index]!r} is annotated as {width} x {height} pixels (width x height)"
        issues.add("other_size", f"{example}, but {file} has {real_width} x {real_height}")
    images.keep &= ~differ
    images.sizes = sizes


def file_below(root: str | None, name: str) -> str:
    """The path of an image relative to the absolute path `root`; "" if it is not below it, or no name."""
    if root and name.startswith(os.path.join(root, "")):
        name = os.path.relpath(name, root)
    is_outside = os.path.isabs(name) or os.path.normpath(name).split("/")[0] in (".", "..")
    return "" if is_outside or not is_usable_text(name) else name


def compact_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Polygons of numbers as arrays of doubles: for `json.loads`, which then needs half the memory.

    A polygon that is no list of numbers stays as it is, to be complained of later.
    """
    polygons = entry.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):
            entry["segmentation"] = [array("d", p) if p and type(p) is list else p for p in polygons]
    return entry


def file_name_in_url(url: object) -> str:
    """The last two parts of LVIS's `coco_url`: "train2017/000000391895.jpg"; "" if there is no file in it."""
    try:
        parts = urlsplit(url).path.split("/") if isinstance(url, str) and is_usable_text(url) else []
    except ValueError:  # such as "//[": half an address in brackets
        parts = []
    return "/".join(part for part in parts[-2:] if part) if parts and parts[-1] else ""


def to_key(value: object) -> int | str | None:
    """An id as it is compared: an integer, also if it is written as 7.0 or "7", or a text; None if wrong."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and is_usable_text(value):
        return int(value) if _INTEGER.fullmatch(value) else value
    return None


def is_usable_text(value: str) -> bool:
    """Whether a text can be an id or a name: it is not empty, and files can hold it."""
    try:
        return value != "" and "\0" not in value and bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return False


def _corners(box: object) -> list[float] | None:
    """(x0, y0, x1, y1) of a bbox; None if it is not [x, y, width, height]."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(one) in (int, float) for one in box):
        return None
    try:
        x, y, width, height = map(float, box)
    except OverflowError:
        return None
    corners = [x, y, x + width, y + height]
    return corners if all(map(math.isfinite, corners)) else None
