"""Which images contain which class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longtail_det2.data.hierarchy import LabelHierarchy


@dataclass(frozen=True)
class ClassIndex:
    """Distinct (class, image) pairs, class by class.

    Attributes:
        offsets: (C + 1,) int64; class c is in the images `images[offsets[c]:offsets[c + 1]]`. C is one more
            than the highest class that occurs, or `num_classes`.
        images: int32 image positions, ascending within a class.
        with_ancestors: an image with a class also has its ancestors.
    """

    offsets: np.ndarray
    images: np.ndarray
    with_ancestors: bool = False

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, images per class."""
        return np.diff(self.offsets)

    @staticmethod
    def build(label_offsets: np.ndarray, labels: np.ndarray, num_classes: int = 0) -> ClassIndex:
        """Sort the pairs.

        Args:
            label_offsets: (n + 1,); image i has `labels[label_offsets[i]:label_offsets[i + 1]]`.
            labels: class indices, which may repeat within an image.
            num_classes: lower bound of the number of classes C.
        """
        labels = labels[label_offsets[0] : label_offsets[-1]]
        num_images = len(label_offsets) - 1
        images = np.repeat(np.arange(num_images, dtype=np.int32), np.diff(label_offsets))
        highest = int(labels.max()) + 1 if len(labels) else 0
        return ClassIndex(*_sorted_pairs(images, labels, num_images, max(num_classes, highest)))

    def expanded(self, hierarchy: LabelHierarchy) -> ClassIndex:
        """The same images with the ancestors of their classes too; `hierarchy` is that of all classes."""
        classes = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        images, classes = hierarchy.expand(self.images, classes)
        num_images = int(images.max()) + 1 if len(images) else 0
        pairs = _sorted_pairs(images, classes, num_images, hierarchy.num_classes)
        return ClassIndex(*pairs, with_ancestors=True)


def _sorted_pairs(
    images: np.ndarray, classes: np.ndarray, num_images: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """`offsets` and `images` of an index, from pairs in any order, which may repeat."""
    # One integer per pair, so that one sort groups and de-duplicates; 32 bits sort twice as fast.
    dtype = np.int32 if num_classes * num_images < 2**31 else np.int64
    keys = classes.astype(dtype)
    keys *= dtype(num_images)
    keys += images
    keys.sort()
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first]
    bounds = np.arange(num_classes + 1, dtype=np.int64) * num_images
    offsets = np.searchsorted(keys, bounds).astype(np.int64)
    return offsets, (keys % max(num_images, 1)).astype(np.int32)
