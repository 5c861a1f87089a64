"""What every metric takes and gives: the ground truth of an annotation store as columns; a result."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from longtail_det2.data.masks import decode_masks, to_rle
from longtail_det2.data.store import AnnotationStore, ImageLabel, ObjectFlag
from longtail_det2.evaluation.openimages_io import GroundTruth

RLE = dict[str, Any]


@dataclass(frozen=True)
class MetricResult:
    """What the method `measure` of a metric found.

    It takes the ground truth, the detections, class indices by name (bins, for means over these classes), and
    (K,) training images of each class or None.

    Attributes:
        summary: means in [0, 1] by task and name; NaN over no class.
        classes: (K,) values of each class by name.
        facts: what else is to be said, for JSON.
    """

    summary: dict[str, dict[str, float]]
    classes: dict[str, np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


class StoreGroundTruth:
    """The m objects of a store, and the a (object, class) pairs that detections are compared with.

    The store needs image sizes, but for `open_images`. Columns are read when they are asked for. A pair of an
    image and a class is also written as one key, image x K + class.
    """

    def __init__(self, store: AnnotationStore) -> None:
        self.store = store

    @cached_property
    def box(self) -> np.ndarray:
        """(m, 4) float64, (x, y, width, height) in pixels; see `boxes_in_pixels`."""
        return boxes_in_pixels(self.store)

    @cached_property
    def area(self) -> np.ndarray:
        """(m,) float64 in pixels: as annotated, else of the mask, else of the box."""
        annotated = self.store.areas if self.store.has_areas else np.full(len(self.box), np.nan)
        area = self.box[:, 2] * self.box[:, 3]
        if self.store.has_masks and np.isnan(annotated).any():
            known = [row for row, mask in enumerate(self.rle) if mask is not None]
            area[known] = [float(coco_mask.area(self.rle[row])) for row in known]  # pyright: ignore
        return np.where(np.isnan(annotated), area, annotated)

    @cached_property
    def rle(self) -> list[RLE | None]:
        """Each object's compressed RLE, None where it has no mask."""
        return [
            None if mask is None else to_rle(mask, height, width)
            for image, (height, width) in enumerate(self.store.image_sizes.tolist())
            for mask in decode_masks(self.store, image)
        ]

    @cached_property
    def group_of(self) -> np.ndarray:
        """(m,) bool, a box around a group of objects."""
        return self.store.flags & int(ObjectFlag.GROUP_OF) != 0

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        store = self.store
        objects = np.repeat(np.arange(store.num_objects), np.diff(store.label_offsets))
        # An object labelled with a class and with its ancestor is the ancestor once.
        keys = _unique_keys(store, *store.hierarchy.expand(objects, store.labels))
        return np.divmod(keys, store.num_classes)

    @property
    def object(self) -> np.ndarray:
        """(a,) int64 object of each pair, ascending: an object is gt of its labels and of their ancestors."""
        return self._pairs[0]

    @property
    def cls(self) -> np.ndarray:
        """(a,) int64 class of each pair, ascending within an object."""
        return self._pairs[1]

    @cached_property
    def image(self) -> np.ndarray:
        """(a,) int64 position of the image of each pair."""
        return images_of_objects(self.store)[self.object]

    @cached_property
    def keys(self) -> np.ndarray:
        """(a,) int64 key of each pair."""
        return self.image * self.store.num_classes + self.cls

    @cached_property
    def absent(self) -> np.ndarray:
        """Ascending keys of classes verified absent, as are the descendants of a class verified absent."""
        return self._labels(ImageLabel.ABSENT, up=False)

    @cached_property
    def not_exhaustive(self) -> np.ndarray:
        """Ascending keys of classes of which not all objects are annotated, nor all of their ancestors."""
        return self._labels(ImageLabel.NOT_EXHAUSTIVE)

    @cached_property
    def present(self) -> np.ndarray:
        """Ascending keys of classes verified present, with their ancestors."""
        return np.union1d(self._labels(ImageLabel.PRESENT), self.not_exhaustive)

    @cached_property
    def verified(self) -> np.ndarray:
        """Keys of classes annotated, verified absent or verified present."""
        return np.concatenate([self.keys, self.absent, self.present])

    @cached_property
    def image_rank(self) -> np.ndarray:
        """(n,) int64 place of each image by ascending id, numbers as numbers, as COCO and LVIS order them."""
        names = [name.decode() for name in self.store.image_ids.tolist()]
        rank = np.arange(len(names))
        if all(name.isdecimal() for name in names):
            rank[sorted(range(len(names)), key=lambda place: int(names[place]))] = np.arange(len(names))
        return rank

    def counts(self) -> np.ndarray:
        """(K,) objects of each class, without groups."""
        return np.bincount(self.cls[~self.group_of[self.object]], minlength=self.store.num_classes)

    def ignored(self, objects: np.ndarray, task: str) -> np.ndarray:
        """(r,) bool: detections in groups, and of masks in objects without mask, count neither way."""
        if task == "bbox":
            return self.group_of[objects]
        missing = np.array([self.rle[row] is None for row in objects.tolist()], dtype=bool)
        return self.group_of[objects] | missing

    def masks(self, objects: np.ndarray) -> list[RLE]:
        """RLE of some objects (r,); the whole box where the mask is missing."""
        sizes = self.store.image_sizes[images_of_objects(self.store)[objects]].tolist()
        return [
            self.rle[row] or box_mask(self.box[row], *size)
            for row, size in zip(objects.tolist(), sizes, strict=True)
        ]

    def open_images(self, *, in_pixels: bool) -> GroundTruth:
        """Annotations for the Open Images metric, not expanded: one box for each label of an object.

        Args:
            in_pixels: give boxes in pixels; else as shares of the image's sides, of which those of six
                decimals, as Open Images' files have them, are restored exactly.
        """
        store = self.store
        if in_pixels:
            box = np.concatenate([self.box[:, :2], self.box[:, :2] + self.box[:, 2:]], axis=1)
        else:
            rounded = store.boxes.astype(np.float64).round(6)
            box = np.where(rounded.astype(np.float32) == store.boxes, rounded, store.boxes)
        objects = np.repeat(np.arange(store.num_objects), np.diff(store.label_offsets))
        return GroundTruth(
            image=images_of_objects(store)[objects],
            cls=np.asarray(store.labels),
            box=box[objects],
            group_of=self.group_of[objects],
            label_image=np.repeat(np.arange(len(store)), np.diff(store.image_label_offsets)),
            label_cls=np.asarray(store.image_labels),
            label_present=store.image_label_status != int(ImageLabel.ABSENT),
        )

    def _labels(self, status: ImageLabel, *, up: bool = True) -> np.ndarray:
        store = self.store
        image = np.repeat(np.arange(len(store)), np.diff(store.image_label_offsets))
        chosen = store.image_label_status == int(status)
        rows, classes = store.hierarchy.expand(image[chosen], store.image_labels[chosen], up=up)
        return _unique_keys(store, rows, classes)


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN of none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def class_ranges(rows: np.ndarray, at_once: int) -> list[range]:
    """Split K classes with `rows` (K,) into ranges with about `at_once` rows, but at least one class."""
    edges = np.flatnonzero(np.diff(np.cumsum(rows) // at_once)) + 1
    return [range(start, end) for start, end in itertools.pairwise([0, *edges.tolist(), len(rows)])]


def images_of_objects(store: AnnotationStore) -> np.ndarray:
    """(m,) int64 position of each object's image."""
    return np.repeat(np.arange(len(store)), np.diff(store.object_offsets))


def boxes_in_pixels(store: AnnotationStore) -> np.ndarray:
    """(m, 4) float64 boxes, (x, y, width, height) in pixels, as the annotation file has them.

    A store keeps corners as float32 shares of the image's sides. A corner of at most two decimals is restored
    exactly: IoUs of exactly 0.5, 0.75, ... are frequent between boxes of whole pixels, and whether they reach
    the threshold must not depend on rounding.
    """
    sides = np.tile(store.image_sizes[images_of_objects(store)][:, ::-1], 2).astype(np.float64)
    corner = store.boxes * sides
    rounded = corner.round(2)
    exact = (rounded / np.maximum(sides, 1)).astype(np.float32) == store.boxes
    corner = np.where(exact, rounded, corner)
    extent = corner[:, 2:] - corner[:, :2]
    extent = np.where(exact[:, :2] & exact[:, 2:], extent.round(2), extent)
    return np.concatenate([corner[:, :2], extent], axis=1)


def box_mask(box: np.ndarray, height: int, width: int) -> RLE:
    """RLE of all pixels of a box, (4,) x, y, width, height in pixels, in an image of this size."""
    x, y, w, h = box.tolist()
    return to_rle([np.array([x, y, x + w, y, x + w, y + h, x, y + h])], height, width)


def _unique_keys(store: AnnotationStore, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.unique(rows * np.int64(store.num_classes) + classes)
