"""Drawing objects with several labels, on top of Detectron2's `Visualizer`.

Lines, text and the canvas are Detectron2's. Added are one text block for all labels of a box, most specific
first; a colour per class; dashed group-of and dotted ignored objects; masks under all boxes, each pixel
tinted once; and room for text: small images are enlarged, blocks moved inside the image and off each other.
"""

from __future__ import annotations

import colorsys
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.structures.boxes import pairwise_intersection
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.colors import to_hex
from PIL import Image

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.masks import check_segmentation, to_bitmap
from longtail_det2.utils.errors import DataError

logger = logging.getLogger(__name__)

MOST_BOXES, MOST_TEXTS = 1000, 300
"""Objects per image that are drawn, and that get text: the most certain or, without scores, the largest."""
_MOST_LABELS = 8  # written beside a box; further ones are counted
_TEXT_SHARE = 0.8  # of the visualizer's font size
_TEXT_MARGIN = 3  # pixels between a text block and whatever it must not touch
_SAME_BOX = 0.65  # intersection over union of predictions that are one object
_TINT = 0.38  # share of the class's colour in the pixels of a mask
_LEAST_SIDE = 384


@dataclass(frozen=True)
class DrawnObject:
    """One box, what is written beside it, and its mask.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the given image.
        classes: one or more class indices, most certain first; the most specific one gives the colour.
        scores: one value in [0, 1] per class, or empty (truth has no scores).
        line_style: of the box, as Matplotlib names it.
        note: further line of text.
        mask: (H, W) bool in pixels of the given image, or None.
    """

    box: Sequence[float]
    classes: list[int]
    scores: list[float] = field(default_factory=list)
    line_style: str = "-"
    note: str = ""
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0)


def class_color(index: int) -> tuple[float, float, float]:
    """Return the RGB in [0, 1] of a class; neighbours in the class order are far apart."""
    hue = (index * 0.618033988749895 + 0.08) % 1.0  # golden ratio
    return colorsys.hls_to_rgb(hue, (0.62, 0.52, 0.72)[index % 3], (0.95, 0.8)[index // 3 % 2])


def room_for(objects: int, least: int = _LEAST_SIDE) -> int:
    """Return how many pixels an image's longer side needs for the text of a number of objects."""
    return max(least, min(24 * objects, 960))


def labels_metadata(class_names: Sequence[str], hierarchy: LabelHierarchy | None = None) -> Metadata:
    """Return Detectron2 metadata for the visualizer, without registering a data set."""
    return Metadata(thing_classes=list(class_names), hierarchy=hierarchy)


def read_mask(value: Any, size: Sequence[int], where: str) -> np.ndarray | None:
    """Read a mask in one of Detectron2's forms as pixels.

    Args:
        value: polygons or RLE as `longtail_det2.data.masks.check_segmentation` takes them, an array or tensor
            of the image's size, or nothing.
        size: height and width of the image.
        where: the mask is, for messages.

    Returns:
        (height, width) bool; None where there is no mask, or none with area inside the image.

    Raises:
        DataError: the mask is malformed, or of another size.
    """
    try:
        if not isinstance(value, (np.ndarray, torch.Tensor)):
            mask = check_segmentation(value, *size)
            return None if mask is None else to_bitmap(mask, *size)
        if tuple(value.shape) != tuple(size):
            raise ValueError(f"of the shape {tuple(value.shape)} in an image of {tuple(size)}")
        return np.asarray(value, dtype=bool)
    except ValueError as error:
        raise DataError(f"{where} has a segmentation {error}") from None


def merge_predictions(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    mask_of: Callable[[int], np.ndarray | None] = lambda row: None,
) -> list[DrawnObject]:
    """Merge predictions of different classes on one box.

    Detectors emit a multi-label object as several (box, class, score) rows. From the highest score down,
    a row joins the first object that lacks its class and whose box it overlaps enough; else it starts one.
    Only the `MOST_BOXES` highest scores count; a warning in the log tells of others.

    Args:
        boxes: (n, 4) XYXY pixels.
        classes: (n,) class indices.
        scores: (n,) in [0, 1].
        mask_of: gives the mask of a row, (H, W) bool, or None.

    Returns:
        Objects with the box and the mask of their best row, by falling best score; labels by falling score.
    """
    if len(scores) > MOST_BOXES:
        logger.warning("the %d most certain of %d predictions are drawn", MOST_BOXES, len(scores))
    rows = np.argsort(-np.asarray(scores), kind="stable")[:MOST_BOXES].tolist()
    tensor = Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[rows]))
    near = (pairwise_iou(tensor, tensor).numpy() >= _SAME_BOX).tolist()
    merged: dict[int, DrawnObject] = {}  # by the place of the best row
    for place, row in enumerate(rows):
        label = int(classes[row])
        fitting = (one for best, one in merged.items() if near[place][best] and label not in one.classes)
        one = next(fitting, None)
        if one is None:
            one = merged[place] = DrawnObject(boxes[row].tolist(), [], [], mask=mask_of(row))
        one.classes.append(label)
        one.scores.append(float(scores[row]))
    return list(merged.values())


class MultiLabelVisualizer(Visualizer):
    """Detectron2's `Visualizer` for boxes with several labels, and for masks.

    Coordinates are those of the given image. Of more than `MOST_TEXTS` objects not all get text, of more than
    `MOST_BOXES` not all are drawn; a warning in the log says so.

    Attributes:
        zoom: pixels of the output per pixel of the given image.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        *,
        min_size: float = _LEAST_SIDE,
        max_size: float = math.inf,
    ) -> None:
        """Prepare the canvas.

        Args:
            img_rgb: (H, W, 3) RGB image in [0, 255].
            metadata: gives `thing_classes` (names) and, if there, `hierarchy`; see `labels_metadata`.
            min_size: least length in pixels of the longer side of the output; see `room_for`.
            max_size: its greatest length.
        """
        image = Image.fromarray(np.ascontiguousarray(np.asarray(img_rgb).clip(0, 255).astype(np.uint8)))
        self._given = image.height, image.width
        self.zoom = min(max(*image.size, min_size), max_size) / max(image.size)
        if self.zoom != 1:
            width, height = (max(round(side * self.zoom), 1) for side in image.size)
            method = Image.Resampling.BILINEAR if self.zoom > 1 else Image.Resampling.LANCZOS
            image = image.resize((width, height), method)
        super().__init__(np.asarray(image), metadata)

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw the annotations of a record in Detectron2's form.

        Several labels come from `category_ids` (else `category_id`), groups from `is_group_of`, masks from
        `segmentation`; objects with `iscrowd` are drawn as ignored. Of an image without objects, the labels
        of the whole image are written, those in `pos_category_ids`.

        Raises:
            DataError: a mask that is malformed or does not fit the image.
        """
        objects = []
        for number, one in enumerate(dic.get("annotations", ())):
            box = BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
            where = f"image {dic.get('image_id')!r}: annotation {number}"
            mask = read_mask(one.get("segmentation"), self._given, where)
            style, note = ("--", "[group of]") if one.get("is_group_of", False) else ("-", "")
            if one.get("iscrowd", 0):
                style, note = ":", f"{note}\n[ignored]".strip()
            labels = one.get("category_ids") or [one["category_id"]]
            objects.append(DrawnObject([*map(float, box)], labels, line_style=style, note=note, mask=mask))
        return self.draw_objects(objects) if objects else self.draw_labels(dic.get("pos_category_ids", ()))

    def draw_labels(self, classes: Sequence[int]) -> VisImage:
        """Write the labels of the whole image."""
        height, width = self._given
        return self.draw_objects([DrawnObject([0, 0, width, height], list(classes))] if len(classes) else [])

    def draw_truth(self, instances: Instances) -> VisImage:
        """Draw training truth as the mapper hands it to the model.

        Args:
            instances: fields `gt_boxes`, `gt_classes`, and if present `gt_labels` (N, K) in {1, 0, -1},
                `gt_group_of`, and `gt_masks`, of which those are drawn that `gt_has_mask` does not rule out.
                Classes that are ignored for an object are counted in a note.
        """
        instances = instances.to("cpu")
        masks = list(instances.gt_masks) if instances.has("gt_masks") else [None] * len(instances)
        objects = []
        for row, label in enumerate(instances.gt_classes.tolist()):
            classes, style, notes = [label], "-", []
            if instances.has("gt_group_of") and instances.gt_group_of[row]:
                style, notes = "--", ["[group of]"]
            if instances.has("gt_labels"):
                truth = instances.gt_labels[row]
                classes += [index for index in torch.nonzero(truth == 1)[:, 0].tolist() if index != label]
                if ignored := int((truth == -1).sum()):
                    notes.append(f"({ignored} below ignored)")
            learned = not instances.has("gt_has_mask") or instances.gt_has_mask[row]
            mask = read_mask(masks[row], self._given, f"object {row}") if learned else None
            box = instances.gt_boxes.tensor[row].tolist()
            objects.append(DrawnObject(box, classes, line_style=style, note="\n".join(notes), mask=mask))
        return self.draw_objects(objects)

    def draw_instance_predictions(self, predictions: Instances, *, score_threshold: float = 0.0) -> VisImage:
        """Draw predictions; those that agree on the box share one text block (see `merge_predictions`).

        Args:
            predictions: fields `pred_boxes`, `pred_classes`, `scores`, and if present `pred_masks` (n, H, W)
                bool in pixels of the image.
            score_threshold: predictions with lower scores are left out.
        """
        shown = predictions[predictions.scores >= score_threshold].to("cpu")
        columns = shown.pred_boxes.tensor, shown.pred_classes, shown.scores
        boxes, classes, scores = (column.detach().numpy() for column in columns)
        masks = list(shown.pred_masks.numpy()) if shown.has("pred_masks") else [None] * len(shown)
        return self.draw_objects(merge_predictions(boxes, classes, scores, mask_of=masks.__getitem__))

    def draw_objects(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draw masks, then boxes, largest first, then the text blocks where there is room for them."""
        shown = [self._most_specific_first(one) for one in objects]
        shown = sorted(shown, key=lambda one: (-max(one.scores, default=0), -one.area))[:MOST_BOXES]
        if len(objects) > MOST_TEXTS:
            logger.warning(
                "of %d objects %d are drawn, %d with text: the most certain or, without scores, the largest",
                *(len(objects), len(shown), MOST_TEXTS),
            )
        order = sorted(range(len(shown)), key=lambda place: -shown[place].area)
        self._draw_masks([shown[place] for place in order if shown[place].mask is not None])
        boxes = torch.tensor([one.box for one in shown]).reshape(-1, 4) * self.zoom
        for place in order:
            style: dict[str, Any] = {"edge_color": to_hex(class_color(shown[place].classes[0]))}
            style["line_style"] = shown[place].line_style
            self.draw_box(tuple(boxes[place].tolist()), alpha=0.9, **style)
        taken = boxes.new_zeros((0, 4))
        for place in reversed(order):  # small boxes have the least room: they choose first
            if place < MOST_TEXTS:
                taken = torch.cat([taken, self._write(shown[place], boxes, place, taken)])
        return self.output

    def text_of(self, one: DrawnObject) -> str:
        """Return the text block of an object: its labels (with their scores), then its note.

        Each label has a line; labels that follow from others by the hierarchy share one per depth.
        """
        names, hierarchy = self.metadata.get("thing_classes", None), self.metadata.get("hierarchy", None)
        texts = [str(names[label] if names else label) for label in one.classes]
        if one.scores:
            texts = [f"{text} {100 * score:.0f}%" for text, score in zip(texts, one.scores, strict=True)]
        words = dict(zip(map(int, one.classes), texts, strict=True))
        shown = list(words)[:_MOST_LABELS]
        implied: dict[int, list[str]] = {}  # words by depth
        if hierarchy is not None:
            above = {int(label) for one in shown for label in hierarchy.ancestors_of(one)}
            for label in filter(above.__contains__, shown):
                implied.setdefault(int(hierarchy.depth[label]), []).append(words.pop(label))
        lines = [words[label] for label in shown if label in words]
        lines += [", ".join(same) for same in implied.values()]
        if not one.scores:  # the labels of a true object belong together: they read as a sum
            lines = lines[:1] + [f"+ {line}" for line in lines[1:]]
        if len(one.classes) > len(shown):
            lines.append(f"… {len(one.classes) - len(shown)} more")
        return "\n".join([*lines, one.note] if one.note else lines)

    def _most_specific_first(self, one: DrawnObject) -> DrawnObject:
        """Sort the labels by falling depth in the hierarchy; they stay as they are where depths are equal."""
        hierarchy = self.metadata.get("hierarchy", None)
        if hierarchy is None:
            return one
        order = sorted(range(len(one.classes)), key=lambda place: -hierarchy.depth[one.classes[place]])
        scores = [one.scores[place] for place in order] if one.scores else []
        return replace(one, classes=[one.classes[place] for place in order], scores=scores)

    def _draw_masks(self, objects: Sequence[DrawnObject]) -> None:
        """Tint masks in the colours of the classes and outline them; later ones lie above earlier ones."""
        pixels = self.img.copy()
        for one in objects:
            mask = np.asarray(one.mask, dtype=np.uint8)
            if mask.shape != self._given:
                form = f"a mask of {mask.shape} pixels (height, width) does not fit an image of {self._given}"
                raise DataError(form)
            if self.zoom != 1:
                # Interpolation gives enlarged masks the smooth edge that the enlarged image has.
                method = cv2.INTER_LINEAR if self.zoom >= 1 else cv2.INTER_AREA
                size = self.output.width, self.output.height
                mask = cv2.resize(mask.astype(np.float32), size, interpolation=method) >= 0.5
                mask = mask.astype(np.uint8)
            if not mask.any():
                continue
            x, y, width, height = cv2.boundingRect(mask)
            part = np.s_[y : y + height, x : x + width]
            mask, color = mask[part], 255 * np.array(class_color(one.classes[0]))
            inner = cv2.erode(mask, np.ones((3, 3)), borderValue=0)
            self.img[part][mask > 0] = ((1 - _TINT) * pixels[part][mask > 0] + _TINT * color).round()
            self.img[part][mask > inner] = color
        self.output.ax.images[0].set_data(self.img)

    def _write(self, one: DrawnObject, boxes: torch.Tensor, place: int, taken: torch.Tensor) -> torch.Tensor:
        """Write the text of an object near its box, where it covers least; return its place (1, 4)."""
        bright = to_hex(self._change_color_brightness(class_color(one.classes[0]), brightness_factor=0.7))
        style: dict[str, Any] = {"color": bright, "horizontal_alignment": "left"}
        style["font_size"] = self._default_font_size * _TEXT_SHARE
        self.draw_text(self.text_of(one), (0, 0), **style)
        drawn = self.output.ax.texts[-1]
        extent = drawn.get_window_extent(self.output.canvas.get_renderer())
        width, height = extent.width + _TEXT_MARGIN, extent.height + _TEXT_MARGIN
        x0, y0, x1, y1 = boxes[place].tolist()
        columns = x0, x1, x1 - width, x0 - width
        rows = y0 - height, y1, y0, y1 - height, y0 - 2 * height, y1 + height
        corner, size = torch.tensor(list(itertools.product(columns, rows))), torch.tensor([width, height])
        room = torch.tensor([self.output.width, self.output.height]) - size
        corner = torch.minimum(corner, room).clamp(min=0)
        blocks = Boxes(torch.cat([corner, corner + size], dim=1))
        on_boxes = pairwise_intersection(blocks, Boxes(boxes))
        # Covering an object is a lesser evil than covering another text.
        cost = 2 * pairwise_intersection(blocks, Boxes(taken)).sum(1) + torch.arange(len(corner))
        cost += 0.25 * on_boxes.sum(1) + 0.25 * on_boxes[:, place]
        block = blocks.tensor[cost.argmin()]
        drawn.set_position(block[:2].tolist())
        return block[None]
