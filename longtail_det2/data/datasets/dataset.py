"""A map-style dataset over annotation stores: Detectron2's standard dicts, several labels per box."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from detectron2.structures import BoxMode
from torch.utils.data import ConcatDataset, Dataset

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.masks import decode_masks
from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.ragged import offsets_of

_GROUP_OF = int(ObjectFlag.GROUP_OF)
_XYXY_ABS = BoxMode.XYXY_ABS
Record: TypeAlias = dict[str, Any]
"""One image as a Detectron2 standard dict, see `MultiLabelDataset.__getitem__`."""


class MultiLabelDataset(Dataset[Record]):
    """Images of one annotation store.

    Records are made on the fly from the memory-mapped columns (a few microseconds each), so neither start-up
    time nor memory grows with the data, and all workers and ranks share the pages. Pickling keeps the path
    only.

    Attributes:
        store: the annotation store.
        class_ids: its K class identifiers.
        indices: (len(self),) int32 positions of this dataset's images in the store; None for all of them.
    """

    def __init__(
        self,
        store: AnnotationStore | str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        filter_empty: bool = False,
        image_level: bool = False,
    ) -> None:
        """Open the store if need be.

        Args:
            store: an open store or its directory.
            image_root: folder that holds the images, instead of the one that the store names.
            filter_empty: leave out the images without objects.
            image_level: labels are those of whole images, for classifiers of images; then `filter_empty`
                leaves out the images of which no class is known, present or absent.

        Raises:
            DataError: no usable store, or one that was made without image sizes.
        """
        self.store = store if isinstance(store, AnnotationStore) else AnnotationStore(store)
        if len(self.store) and not self.store.has_image_sizes:
            raise DataError(
                f"{self.store.path}: the store has no image sizes, which training and inference need; "
                "prepare it again with the image folder"
            )
        root = image_root if image_root is not None else self.store.image_root
        if root is None:
            raise DataError(f"{self.store.path}: the store names no image folder; pass image_root")
        self.image_root = str(root)
        self._folder = os.path.join(self.image_root, "")
        self.filter_empty, self.image_level = filter_empty, image_level
        self.indices: np.ndarray | None = None
        if filter_empty and not (image_level and self.store.exhaustive_labels):
            rows = np.diff(self.store.object_offsets)
            kept = np.flatnonzero(rows + np.diff(self.store.image_label_offsets) if image_level else rows)
            if len(kept) < len(self.store):
                self.indices = kept.astype(np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return MultiLabelDataset, (self.store, self.image_root, self.filter_empty, self.image_level)

    @property
    def class_ids(self) -> tuple[str, ...]:
        """K class identifiers in class-index order."""
        return self.store.class_ids

    @property
    def hierarchy(self) -> LabelHierarchy:
        """Hierarchy of the classes (flat if the store has none)."""
        return self.store.hierarchy

    @property
    def image_sizes(self) -> np.ndarray:
        """(len(self), 2) int32, (height, width) of each image."""
        return self.store.image_sizes if self.indices is None else self.store.image_sizes[self.indices]

    def labels_per_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels as annotated, image by image.

        Returns:
            (offsets (len(self) + 1,) int64, labels): image i has `labels[offsets[i]:offsets[i + 1]]`, one
            entry for each label of each object, so classes repeat; at image level, see
            `AnnotationStore.present_labels`.
        """
        offsets, labels = self.store.label_offsets[self.store.object_offsets], self.store.labels
        if self.image_level:
            offsets, labels = self.store.present_labels
        if self.indices is not None:
            # The images left out have no labels: the others' ranges stay next to each other.
            offsets = np.append(offsets[self.indices], offsets[-1])
        return offsets, labels

    def __len__(self) -> int:
        return len(self.store) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """The record of one image.

        Returns:
            A dict with `file_name`, `image_id` (str), `height` and `width` in pixels, `annotations` (a list
            of `bbox` [x0, y0, x1, y1] in pixels, `bbox_mode`, `category_id` the most specific label,
            `category_ids` all labels as annotated, `iscrowd` 0, `is_group_of`, and for objects with a mask
            `segmentation`, see `longtail_det2.data.masks`), and the classes verified for the whole image:
            `pos_category_ids` present (perhaps not with all objects), `neg_category_ids` absent. At image
            level also `exhaustive_labels`, see `AnnotationStore`.

        Raises:
            IndexError: `index` is not in [-len(self), len(self)).
        """
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"image {index} of a dataset of {length}")
        index = index % length if self.indices is None else int(self.indices[index])
        columns = self.store.columns_at(index)
        sizes = columns["image_size"]
        height, width = sizes.item(index, 0), sizes.item(index, 1)
        present, absent = _image_labels(columns, index)
        known = {"exhaustive_labels": self.store.exhaustive_labels} if self.image_level else {}
        return {
            "file_name": self._folder + columns["file_name"][index].decode(),
            "image_id": columns["image_id"][index].decode(),
            "height": height,
            "width": width,
            "annotations": self._annotations(columns, index, height, width),
            "pos_category_ids": present,
            "neg_category_ids": absent,
            **known,
        }

    def _annotations(
        self, columns: Mapping[str, np.ndarray], index: int, height: int, width: int
    ) -> list[Record]:
        # Lists of Python numbers, because for the few objects of an image they beat array arithmetic.
        offsets = columns["object_offsets"]
        first, last = offsets.item(index), offsets.item(index + 1)
        if first == last:
            return []
        ends = columns["label_offsets"][first : last + 1].tolist()
        base = ends[0]
        labels = columns["label"][base : ends[-1]].tolist()
        if len(labels) == last - first:
            label_lists = [[label] for label in labels]
        else:
            label_lists = [labels[begin - base : end - base] for begin, end in pairwise(ends)]
        boxes, flags = columns["box"][first:last].tolist(), columns["flags"][first:last].tolist()
        records = [
            {
                "bbox": [x0 * width, y0 * height, x1 * width, y1 * height],
                "bbox_mode": _XYXY_ABS,
                "category_id": own[0],
                "category_ids": own,
                "iscrowd": 0,
                "is_group_of": bits & _GROUP_OF != 0,
            }
            for (x0, y0, x1, y1), bits, own in zip(boxes, flags, label_lists, strict=True)
        ]
        if self.store.has_masks:
            for record, mask in zip(records, decode_masks(self.store, index), strict=True):
                if mask is not None:
                    record["segmentation"] = mask
        return records

    def __repr__(self) -> str:
        return f"MultiLabelDataset({str(self.store.path)!r}, {len(self)} images)"


class ConcatMultiLabelDataset(ConcatDataset[Record]):
    """Several stores with the same classes, one after the other.

    Attributes:
        class_ids: the K class identifiers that all parts have.
        hierarchy: hierarchy of the first part.
    """

    def __init__(self, datasets: Sequence[MultiLabelDataset], names: Sequence[str] | None = None) -> None:
        """Check that class index c means the same in all parts.

        Args:
            datasets: at least one.
            names: what error messages call them; their store paths if None.

        Raises:
            DataError: two parts have different class lists.
        """
        super().__init__(datasets)
        self.parts = list(datasets)
        names = list(names) if names is not None else [str(part.store.path) for part in self.parts]
        for part, name in zip(self.parts[1:], names[1:], strict=True):
            check_same_classes(self.parts[0].class_ids, part.class_ids, names[0], name)
        self.class_ids = self.parts[0].class_ids
        self.hierarchy = self.parts[0].hierarchy

    @property
    def image_sizes(self) -> np.ndarray:
        """(len(self), 2) int32, (height, width) of each image."""
        return np.concatenate([part.image_sizes for part in self.parts])

    def labels_per_image(self) -> tuple[np.ndarray, np.ndarray]:
        """See `MultiLabelDataset.labels_per_image`."""
        offsets, labels, base = [np.zeros(1, dtype=np.int64)], [], 0
        for part_offsets, part_labels in (part.labels_per_image() for part in self.parts):
            # A part's first offset need not be 0: a filtered part may be a window of its store.
            begin, end = int(part_offsets[0]), int(part_offsets[-1])
            offsets.append(part_offsets[1:] - begin + base)
            labels.append(part_labels[begin:end])
            base += end - begin
        return np.concatenate(offsets), np.concatenate(labels)


def check_same_classes(ours: Sequence[str], theirs: Sequence[str], our_name: str, their_name: str) -> None:
    """Raise DataError, naming both sources and the first difference, unless two class lists are equal."""
    difference = f"{our_name} has {len(ours)} classes but {their_name} has {len(theirs)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            difference = f"class {index} is {one!r} in {our_name} but {other!r} in {their_name}"
            break
    if list(ours) != list(theirs):
        raise DataError(f"{difference}: both need the same class list in the same order")


def labels_per_image(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all objects, image by image, of a dataset or an annotation store.

    Args:
        source: an `AnnotationStore`, a dataset with a `labels_per_image` method, or any sequence of
            Detectron2 dicts (which is read from beginning to end).

    Returns:
        (offsets (n + 1,) int64, labels): image i has `labels[offsets[i]:offsets[i + 1]]`; classes may repeat.
    """
    if isinstance(source, AnnotationStore):
        return source.label_offsets[source.object_offsets], source.labels
    if hasattr(source, "labels_per_image"):
        return source.labels_per_image()
    per_image = [
        [label for one in source[index].get("annotations", ()) for label in annotation_labels(one)]
        for index in range(len(source))
    ]
    flat = np.fromiter(itertools.chain.from_iterable(per_image), dtype=np.int32)
    return offsets_of(np.array([len(labels) for labels in per_image], dtype=np.int64)), flat


def annotation_labels(annotation: Mapping[str, Any]) -> Sequence[int]:
    """The labels of one annotation of a Detectron2 dict: its `category_ids`, else its `category_id`.

    Raises:
        DataError: it has neither.
    """
    labels = annotation.get("category_ids")
    if labels is not None and len(labels):
        return labels
    if "category_id" not in annotation:
        raise DataError(
            f"an annotation has neither 'category_ids' nor 'category_id', only {list(annotation)}"
        )
    return [annotation["category_id"]]


def _image_labels(columns: Mapping[str, np.ndarray], index: int) -> tuple[list[int], list[int]]:
    """Classes verified present and absent in an image."""
    offsets = columns["image_label_offsets"]
    first, last = offsets.item(index), offsets.item(index + 1)
    sides: tuple[list[int], list[int]] = ([], [])
    if first < last:
        labels = columns["image_label"][first:last].tolist()
        for label, status in zip(labels, columns["image_label_status"][first:last].tolist(), strict=True):
            sides[status == 0].append(label)
    return sides
