"""Masks of an image's objects as a mask head trains on them, augmented with the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks

from longtail_det2.data.masks import to_bitmap
from longtail_det2.utils.errors import DataError

MaskFormat = Literal["polygon", "bitmask"]
"""INPUT.MASK_FORMAT: polygons are small and cropped exactly; bitmaps can be of any form."""


def make_masks(
    objects: Sequence[Mapping[str, Any]],
    boxes: np.ndarray,
    transforms: T.Transform,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    mask_format: MaskFormat,
    image_name: str,
) -> tuple[PolygonMasks | BitMasks, torch.Tensor]:
    """Make the objects' masks after augmentation.

    An object without `segmentation` is no gt of a mask head, and neither is a group-of box, whose mask is
    that of no single object. Their place is held by their box.

    Args:
        objects: N annotations.
        boxes: (N, 4) their boxes after augmentation, in pixels.
        transforms: what was done to the image.
        sizes: (height, width) of the image before and after.
        mask_format: of the result.
        image_name: for messages.

    Returns:
        The N masks, empty where an augmentation has cut them away; (N,) bool, whether each is an object's.

    Raises:
        DataError: RLE where polygons are wanted.
    """
    found = [None if one.get("is_group_of", False) else one.get("segmentation") or None for one in objects]
    pairs = list(zip(found, boxes, strict=True))
    if mask_format == "bitmask":
        bitmaps = [_move_bitmap(mask, box, transforms, sizes) for mask, box in pairs]
        result = BitMasks(torch.from_numpy(np.stack(bitmaps) if bitmaps else np.zeros((0, *sizes[1]), bool)))
    elif any(isinstance(mask, dict) for mask in found):
        raise DataError(
            f"{image_name}: an object has RLE for a mask, which INPUT.MASK_FORMAT 'polygon' cannot "
            "use: set it to 'bitmask' (lazy configs: dataloader.train.mapper.mask_format)"
        )
    else:
        polygons: Any = [[one.reshape(-1) for one in _move(mask, box, transforms)] for mask, box in pairs]
        result = PolygonMasks(polygons)
    return result, torch.tensor([mask is not None for mask in found], dtype=torch.bool)


def _move(mask: Any, box: np.ndarray, transforms: T.Transform) -> list[np.ndarray]:
    """Polygons (v, 2) after augmentation, float64; that of the box where there is no mask."""
    if mask is None:
        x0, y0, x1, y1 = box.tolist()
        return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
    # Copies: augmentations change coordinates in place, and a store's columns are read-only.
    copies = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask]
    return [np.asarray(polygon, dtype=np.float64) for polygon in transforms.apply_polygons(copies)]


def _move_bitmap(
    mask: Any, box: np.ndarray, transforms: T.Transform, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> np.ndarray:
    before, (height, width) = sizes
    if isinstance(mask, dict):
        moved = transforms.apply_segmentation(to_bitmap(mask, *before).astype(np.uint8))
        return np.ascontiguousarray(moved.astype(bool))
    polygons = [np.clip(one, 0, (width, height)).reshape(-1) for one in _move(mask, box, transforms)]
    return to_bitmap(polygons, height, width) if polygons else np.zeros((height, width), bool)
