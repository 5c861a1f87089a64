"""Ground truth of an annotation store as arrays, for COCO's and LVIS's metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from longtail_det2.data.masks import decode_masks, to_rle
from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.utils.errors import ConfigError


@dataclass(frozen=True)
class StoreTruth:
    """Objects of a store in pixels, and the (object, class) pairs that detections are compared with.

    Attributes:
        box: (m, 4) float64, (x, y, width, height) of each object in pixels of its image.
        area: (m,) float64 in pixels: as annotated, else of the mask, else of the box.
        group: (m,) bool, a box around a group of objects.
        runs: None in a store without masks or if they were not asked for; else each object's COCO run
            lengths, None where it has no mask.
        object: (a,) int64 row of the object of each pair: an object is truth of its labels and of their
            ancestors. Ascending, and in an object by class.
        image: (a,) int64 position of its image in the store.
        cls: (a,) int64 class index.
    """

    box: np.ndarray
    area: np.ndarray
    group: np.ndarray
    runs: list[dict[str, Any] | None] | None
    object: np.ndarray
    image: np.ndarray
    cls: np.ndarray


def truth_of_store(store: AnnotationStore, *, with_masks: bool = False) -> StoreTruth:
    """Reads the ground truth of a store.

    Args:
        store: with image sizes.
        with_masks: keep the run lengths; areas that are not annotated are those of the masks in any case.
    """
    images = np.repeat(np.arange(len(store)), np.diff(store.object_offsets))
    height, width = store.image_sizes[images].T.astype(np.float64)
    corners = store.boxes * np.stack([width, height, width, height], axis=1)
    box = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    area = box[:, 2] * box[:, 3]
    annotated = store.areas if store.has_areas else np.full(len(box), np.nan)
    runs: list[dict[str, Any] | None] | None = None
    if store.has_masks and (with_masks or np.isnan(annotated).any()):
        runs = []
        for image, (h, w) in enumerate(store.image_sizes.tolist()):
            masks = decode_masks(store, image)
            encoded = [None if mask is None else to_rle(mask, h, w) for mask in masks]
            for place, one in enumerate(encoded, start=int(store.object_offsets[image])):
                if one is not None:
                    area[place] = float(coco_mask.area(one))  # pyright: ignore[reportArgumentType]
            if with_masks:
                runs += encoded
    area = np.where(np.isnan(annotated), area, annotated)
    rows, classes = store.hierarchy.expand(
        np.repeat(np.arange(store.num_objects), np.diff(store.label_offsets)), store.labels
    )
    # An object that is labelled with a class and with its ancestor is the ancestor once.
    keys = np.unique(rows * np.int64(store.num_classes) + classes)
    objects = keys // store.num_classes
    return StoreTruth(
        box=box,
        area=area,
        group=store.flags & int(ObjectFlag.GROUP_OF) != 0,
        runs=runs if with_masks else None,
        object=objects,
        image=images[objects],
        cls=keys % store.num_classes,
    )


def check_tasks(tasks: Sequence[str], store: AnnotationStore, metric: str) -> None:
    """Whether a store can be evaluated as asked.

    Args:
        tasks: what is to be evaluated.
        store: with the ground truth.
        metric: "COCO" or "LVIS".

    Raises:
        ConfigError: an unknown task, none, or masks of a store that has none.
    """
    unknown = sorted(set(tasks) - {"bbox", "segm"})
    if unknown or not tasks:
        raise ConfigError(
            f"{metric}'s metric knows the tasks 'bbox' and 'segm', not {unknown or 'none at all'} "
            f"(TEST.{metric}.TASKS)"
        )
    if "segm" in tasks and not store.has_masks:
        raise ConfigError(
            f"{store.path} has no masks to evaluate with: make the store from a COCO- or LVIS-form file with "
            f"segmentations, or evaluate boxes only (TEST.{metric}.TASKS ('bbox',))"
        )


def whole_box_runs(box: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Run lengths of all pixels of a box: the region of an object that has no mask.

    Args:
        box: (4,) x, y, width, height in pixels.
        height: of the image.
        width: of the image.
    """
    x, y, w, h = box.tolist()
    return to_rle([np.array([x, y, x + w, y, x + w, y + h, x, y + h])], height, width)
