"""From a dataset record to the model's input: image, boxes, masks, and multi-label ground truth."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from longtail_det2.data.datasets.builtin import hierarchy_of
from longtail_det2.data.datasets.dataset import annotation_labels
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.images import read_image
from longtail_det2.data.masks import to_bitmap
from longtail_det2.utils.errors import ConfigError, DataError

_Size: TypeAlias = tuple[int, int]
_ANNOTATION_KEYS = (
    "annotations",
    "pos_category_ids",
    "neg_category_ids",
    "not_exhaustive_category_ids",
    "exhaustive_labels",
)


class MultiLabelDatasetMapper:
    """Read and augment the image and make ground truth with several labels per object.

    The output has `image` (C, H, W) uint8, the record's `height`, `width`, `image_id` and `file_name`, and in
    training `instances`: `gt_boxes`, `gt_classes` int64 (N,) the most specific label, `gt_labels` int8 (N, K)
    with 1 for the annotated labels and their ancestors, -1 (ignored) for the descendants of the most specific
    labels, 0 elsewhere, and `gt_group_of` bool (N,). With a `mask_format` also `gt_masks` and `gt_has_mask`
    bool (N,): an object without `segmentation` and a group-of box have none.

    `group_of="keep"` trains on group-of boxes as on other objects: so do the published Open Images detectors,
    and the official metric credits a group once when any detection lies in it. `"drop"` leaves them out, and
    their region may be sampled as background: so Detectron2 does with crowds (`iscrowd`), which always go.

    With `image_level` the ground truth is instead `gt_labels` int8 (K,) of the whole image: 1 for the classes
    of its objects, those verified present, and their ancestors; 0 for the others where all labels are known
    (`exhaustive_labels`), else for those verified absent and their descendants alone, and -1 for the rest.

    Other fields of a record pass through. Instances are picklable and safe in several workers.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "BGR",
        hierarchy: LabelHierarchy | None = None,
        ignore_descendants: bool = True,
        group_of: Literal["keep", "drop"] = "keep",
        mask_format: Literal["polygon", "bitmask"] | None = None,
        recompute_boxes: bool = False,
        image_level: bool = False,
    ) -> None:
        """Set the mapper up; `MultiLabelDatasetMapper(cfg, is_train)` reads a config instead.

        Args:
            is_train: make ground truth (also of validation data); otherwise annotations stay out.
            augmentations: applied to image and boxes in this order.
            image_format: as `detection_utils.read_image` takes it, such as "BGR".
            hierarchy: of the K classes, flat if need be; only ground truth needs it.
            ignore_descendants: False makes the descendants of the most specific label negatives.
            group_of: see the class.
            mask_format: None: no masks. Polygons are small and cropped exactly, bitmaps can have any form.
            recompute_boxes: after augmentation, boxes of objects with a mask become the tight boxes of the
                masks (right for random crops, which cut boxes and masks differently).
            image_level: ground truth for classifiers of images, see the class.

        Raises:
            ConfigError: unknown `group_of` or `mask_format`, or no hierarchy where ground truth is made.
        """
        if group_of not in ("keep", "drop"):
            raise ConfigError(f"INPUT.GROUP_OF must be 'keep' or 'drop', not {group_of!r}")
        if mask_format not in (None, "polygon", "bitmask"):
            raise ConfigError(f"INPUT.MASK_FORMAT must be 'polygon' or 'bitmask', not {mask_format!r}")
        if hierarchy is None and is_train:
            raise ConfigError("ground truth needs the hierarchy of the classes, flat where they have none")
        self.is_train, self.hierarchy = is_train, hierarchy
        self.augmentations, self.image_format = T.AugmentationList(augmentations), image_format
        self.ignore_descendants, self.group_of = ignore_descendants, group_of
        self.mask_format, self.recompute_boxes = mask_format, recompute_boxes
        self.image_level = image_level
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("Augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments from a config; the hierarchy is that of the training data sets.

        Raises:
            ConfigError: keypoints or precomputed proposals are asked for.
            DataError: the training data sets have different class lists.
        """
        for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
            if cfg.MODEL[key]:
                raise ConfigError(
                    f"MODEL.{key} is True, but MultiLabelDatasetMapper carries boxes, labels and masks only"
                )
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "hierarchy": hierarchy_of(cfg.DATASETS.TRAIN) if is_train else None,
            "ignore_descendants": cfg.INPUT.IGNORE_DESCENDANTS,
            "group_of": cfg.INPUT.GROUP_OF,
            "mask_format": cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            "recompute_boxes": cfg.MODEL.MASK_ON and cfg.INPUT.CROP.ENABLED,
            "image_level": cfg.INPUT.IMAGE_LEVEL,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record, which is not changed.

        Args:
            record: a Detectron2 dict as `MultiLabelDataset` gives it. Plain Detectron2 records will do: an
                annotation without `category_ids` has its `category_id` only.

        Raises:
            DataError: the image cannot be read, or its size is not the annotated one.
        """
        result = {key: copy.deepcopy(record[key]) for key in record if key not in _ANNOTATION_KEYS}
        image = self.read_image(result)
        inputs = T.AugInput(image)
        transforms = self.augmentations(inputs)
        augmented = np.asarray(inputs.image)
        result["image"] = torch.as_tensor(np.ascontiguousarray(augmented.transpose(2, 0, 1)))
        if self.is_train and self.image_level:
            result["gt_labels"] = torch.from_numpy(self._image_labels(record))
        elif self.is_train:
            result["instances"] = self._make_instances(
                record, transforms, image.shape[:2], augmented.shape[:2]
            )
        return result

    def read_image(self, record: dict[str, Any]) -> np.ndarray:
        """Return the image (H, W, C); set the record's height and width where it has none.

        A subclass that needs no pixels may return any of the right size.

        Raises:
            DataError: see :meth:`__call__`.
        """
        path = record["file_name"]
        image = read_image(path, self.image_format, image_id=record.get("image_id"))
        height, width = image.shape[:2]
        expected = (record.setdefault("height", height), record.setdefault("width", width))
        if expected != (height, width):
            raise DataError(
                f"{_name_of(record)}: annotated as {expected[1]} x {expected[0]} pixels (width x height), "
                f"but the file has {width} x {height}; was it resized after the data set was prepared? "
                "Prepare it again"
            )
        return image

    def _image_labels(self, record: Mapping[str, Any]) -> np.ndarray:
        """Ground truth (K,) of the whole image; see the class."""
        assert self.hierarchy is not None
        present = {label for one in record.get("annotations", ()) for label in annotation_labels(one)}
        present.update(record.get("pos_category_ids", ()))
        (truth,) = self.hierarchy.encode([sorted(present)], ignore_descendants=False)
        if not record.get("exhaustive_labels", True):
            absent = np.array(record.get("neg_category_ids", ()), dtype=np.int64)
            unknown = truth == 0
            unknown[self.hierarchy.expand(absent, absent, up=False)[1]] = False
            truth[unknown] = -1
        return truth

    def _make_instances(
        self, record: Mapping[str, Any], transforms: T.Transform, before: _Size, after: _Size
    ) -> Instances:
        """Ground truth of an image of (height, width) `before` and `after` augmentation."""
        assert self.hierarchy is not None
        objects = [
            one
            for one in record.get("annotations", ())
            if not one.get("iscrowd", 0) and not (self.group_of == "drop" and one.get("is_group_of", False))
        ]
        boxes = np.array(
            [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in objects]
        ).reshape(-1, 4)
        if len(boxes):
            boxes = transforms.apply_box(boxes).clip(0, [*after[::-1], *after[::-1]])
        labels = [annotation_labels(one) for one in objects]
        classes = [one.get("category_id", own[0]) for one, own in zip(objects, labels, strict=True)]
        encoded = self.hierarchy.encode(labels, ignore_descendants=self.ignore_descendants)
        instances = Instances(after)
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_labels = torch.from_numpy(encoded)
        groups = [bool(one.get("is_group_of", False)) for one in objects]
        instances.gt_group_of = torch.tensor(groups, dtype=torch.bool)
        # What cropping or rounding made degenerate goes, together with its labels.
        kept: Any = instances.gt_boxes.nonempty(threshold=1e-5)
        if self.mask_format is not None:
            # An object without `segmentation` is no ground truth of a mask head, and neither is a group-of
            # box, whose mask is that of no single object. Their place is held by their box.
            found = [None if one.get("is_group_of") else one.get("segmentation") or None for one in objects]
            if self.mask_format == "polygon" and any(isinstance(mask, dict) for mask in found):
                raise DataError(
                    f"{_name_of(record)}: an object has RLE for a mask, which INPUT.MASK_FORMAT 'polygon' "
                    "cannot use: set it to 'bitmask' (lazy configs: dataloader.train.mapper.mask_format)"
                )
            known = torch.tensor([mask is not None for mask in found], dtype=torch.bool)
            masks: Any = self._move_masks(found, boxes, transforms, before, after)
            kept &= masks.nonempty() | ~known
            if self.recompute_boxes:
                tight = known & kept
                instances.gt_boxes.tensor[tight] = masks[tight].get_bounding_boxes().tensor
            instances.gt_masks, instances.gt_has_mask = masks, known
        return instances[kept]

    def _move_masks(
        self, masks: Sequence[Any], boxes: np.ndarray, transforms: T.Transform, before: _Size, after: _Size
    ) -> PolygonMasks | BitMasks:
        """N masks after augmentation, empty where it has cut them away; `boxes` (N, 4) are those after it."""
        pairs = zip(masks, boxes, strict=True)
        if self.mask_format == "polygon":
            polygons: Any = [[one.reshape(-1) for one in _move(mask, box, transforms)] for mask, box in pairs]
            return PolygonMasks(polygons)
        bitmaps = np.zeros((len(masks), *after), bool)
        for bitmap, (mask, box) in zip(bitmaps, pairs, strict=True):
            if isinstance(mask, dict):
                bitmap[:] = transforms.apply_segmentation(to_bitmap(mask, *before).astype(np.uint8))
            elif moved := [np.clip(one, 0, after[::-1]).reshape(-1) for one in _move(mask, box, transforms)]:
                bitmap[:] = to_bitmap(moved, *after)
        return BitMasks(torch.from_numpy(bitmaps))


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[Any]:
    """Return Detectron2's augmentations of a config, and those of this project's keys in ``INPUT``."""
    augmentations: list[Any] = detection_utils.build_augmentation(cfg, is_train)
    if cfg.INPUT.FIXED_SIZE:
        augmentations[0] = T.Resize(list(cfg.INPUT.FIXED_SIZE))
    if cfg.INPUT.CROP.ENABLED and is_train:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if (jitter := cfg.INPUT.COLOR_JITTER) and is_train:
        for kind in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation):
            augmentations.append(kind(1 - jitter, 1 + jitter))
    return augmentations


def _name_of(record: Mapping[str, Any]) -> str:
    """What messages call an image."""
    return f"{record['file_name']} (image {record.get('image_id')!r})"


def _move(mask: Any, box: np.ndarray, transforms: T.Transform) -> list[np.ndarray]:
    """Polygons (v, 2) after augmentation, float64; that of the box where there is no mask."""
    if mask is None:
        x0, y0, x1, y1 = box.tolist()
        return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
    # Copies: augmentations change coordinates in place, and a store's columns are read-only.
    copies = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask]
    return [np.asarray(polygon, dtype=np.float64) for polygon in transforms.apply_polygons(copies)]
