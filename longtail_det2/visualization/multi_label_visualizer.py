"""Drawing objects with several labels, on top of Detectron2's `Visualizer`.

Lines, text and the canvas are Detectron2's. Added are one text block for all labels of a box, most specific
first; a colour per class; marks for group-of and ignored objects; masks under all boxes, each pixel tinted
once; and room for the text: small images are enlarged, blocks are moved inside the image and off each other.
"""

from __future__ import annotations

import colorsys
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks, pairwise_iou
from detectron2.structures.boxes import pairwise_intersection
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from PIL import Image

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import DataError

from .mask_drawing import fit_mask, outline, paint, read_mask

logger = logging.getLogger(__name__)

_GOLDEN_RATIO = 0.618033988749895
_TEXT_SHARE = 0.8  # of the visualizer's font size
_OUTLINE_SHARE = 0.1  # width of the line around a mask by font size; that of a box is 0.25
_OUTLINE_LIGHT = 0.15  # how much lighter than the class's colour the line around a mask is
_TEXT_MARGIN = 3  # pixels between a text block and whatever it must not touch
_MAX_LABELS = 8  # written beside a box; further ones are counted
_LEAST_SIDE = 384


@dataclass(frozen=True)
class DrawnObject:
    """One box, what is written beside it, and its mask.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the given image.
        classes: class indices, most certain first; the most specific one gives the colour.
        scores: one value in [0, 1] per class, or empty (truth has no scores).
        group_of: the box encloses a group (dashed outline).
        ignored: the object takes no part in training or evaluation (dotted outline).
        note: a further line of text.
        mask: (H, W) bool in pixels of the given image, or None.
    """

    box: Sequence[float]
    classes: Sequence[int]
    scores: Sequence[float] = ()
    group_of: bool = False
    ignored: bool = False
    note: str = ""
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0)

    @property
    def line_style(self) -> str:
        """Matplotlib's name of the line around box and mask."""
        return ":" if self.ignored else "--" if self.group_of else "-"

    @property
    def color(self) -> tuple[float, float, float]:
        """RGB in [0, 1]."""
        return class_color(int(self.classes[0])) if len(self.classes) else (0.8, 0.8, 0.8)


def class_color(index: int) -> tuple[float, float, float]:
    """Return the RGB in [0, 1] of a class; neighbours in the class order are far apart."""
    hue = (index * _GOLDEN_RATIO + 0.08) % 1.0
    return colorsys.hls_to_rgb(hue, (0.62, 0.52, 0.72)[index % 3], (0.95, 0.8)[index // 3 % 2])


def room_for(objects: int, least: int = _LEAST_SIDE) -> int:
    """Return how many pixels an image's longer side needs for the text of so many objects."""
    return max(least, min(24 * objects, 960))


def labels_metadata(class_names: Sequence[str], hierarchy: LabelHierarchy | None = None) -> Metadata:
    """Return Detectron2 metadata for the visualizer, without registering a data set."""
    return Metadata(thing_classes=list(class_names), hierarchy=hierarchy)


def merge_predictions(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    iou: float = 0.65,
    masks: Sequence[np.ndarray | None] | None = None,
) -> list[DrawnObject]:
    """Merge predictions of different classes on one box.

    Detectors emit a multi-label object as several (box, class, score) rows. From the highest score down,
    a row joins the first object that lacks its class and whose box it overlaps enough; else it starts one.

    Args:
        boxes: (n, 4) XYXY pixels.
        classes: (n,) class indices.
        scores: (n,) in [0, 1].
        iou: least intersection over union for joining, in (0, 1].
        masks: n masks, (H, W) bool, None where a row has none.

    Returns:
        Objects with the box and the mask of their best row, by falling best score; labels by falling score.
    """
    tensor = Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)))
    near = pairwise_iou(tensor, tensor).numpy() >= iou
    groups: list[list[int]] = []
    best = np.zeros(len(near), dtype=np.int64)  # first row of each group
    for row in np.argsort(-np.asarray(scores), kind="stable").tolist():
        for place in np.flatnonzero(near[row, best[: len(groups)]]).tolist():
            if classes[row] not in classes[groups[place]]:
                groups[place].append(row)
                break
        else:
            best[len(groups)] = row
            groups.append([row])
    return [
        DrawnObject(
            [float(value) for value in boxes[group[0]]],
            [int(classes[row]) for row in group],
            [float(scores[row]) for row in group],
            mask=None if masks is None else masks[group[0]],
        )
        for group in groups
    ]


class MultiLabelVisualizer(Visualizer):
    """Detectron2's `Visualizer` for boxes with several labels, and for masks.

    Coordinates are those of the given image.

    Attributes:
        zoom: pixels of the output per pixel of the given image.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        *,
        min_size: int = _LEAST_SIDE,
        max_size: int | None = None,
        max_texts: int = 300,
    ) -> None:
        """Prepare the canvas.

        Args:
            img_rgb: (H, W, 3) RGB image in [0, 255].
            metadata: gives `thing_classes` (names) and, if there, `hierarchy`; see `labels_metadata`.
            min_size: least length in pixels of the longer side of the output; see `room_for`.
            max_size: greatest length in pixels of the longer side of the output; None sets no limit.
            max_texts: boxes with text, those of the highest scores or, without scores, the largest; a
                warning in the log tells of others.
        """
        image = np.ascontiguousarray(np.asarray(img_rgb).clip(0, 255).astype(np.uint8))
        height, width = self._given = image.shape[:2]
        longest = max(height, width, 1)
        self.zoom = min(max(longest, min_size), max_size or math.inf) / longest
        if self.zoom != 1:
            size = max(round(height * self.zoom), 1), max(round(width * self.zoom), 1)
            method = Image.Resampling.BILINEAR if self.zoom > 1 else Image.Resampling.LANCZOS
            image = ResizeTransform(height, width, *size, interp=method).apply_image(image)
        super().__init__(image, metadata)
        self.max_texts = max_texts

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw the annotations of a record in Detectron2's form.

        Several labels come from `category_ids` (else `category_id`), groups from `is_group_of`, masks from
        `segmentation`; objects with `iscrowd` are drawn as ignored.

        Raises:
            DataError: a mask that is malformed or does not fit the image.
        """
        objects = []
        for number, annotation in enumerate(dic.get("annotations", ())):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            where = f"image {dic.get('image_id')!r}: annotation {number}"
            objects.append(
                DrawnObject(
                    [float(value) for value in box],
                    annotation.get("category_ids") or [annotation["category_id"]],
                    group_of=bool(annotation.get("is_group_of", False)),
                    ignored=bool(annotation.get("iscrowd", 0)),
                    mask=self._read_mask(annotation.get("segmentation"), where),
                )
            )
        return self.draw_objects(objects)

    def draw_truth(self, instances: Instances) -> VisImage:
        """Draw training truth as the mapper hands it to the model.

        Args:
            instances: fields `gt_boxes`, `gt_classes`, and if present `gt_labels` (N, K) in {1, 0, -1},
                `gt_group_of`, and `gt_masks`, of which those are drawn that `gt_has_mask` does not rule out.
                Classes that are ignored for an object are counted in a note.
        """
        masks = self._truth_masks(instances)
        truth = instances.gt_labels.cpu().numpy() if instances.has("gt_labels") else None
        groups = instances.gt_group_of.tolist() if instances.has("gt_group_of") else [False] * len(instances)
        objects = []
        for row, label in enumerate(instances.gt_classes.tolist()):
            classes, note = [label], ""
            if truth is not None:
                classes += [index for index in np.flatnonzero(truth[row] == 1).tolist() if index != label]
                ignored = int((truth[row] == -1).sum())
                note = f"({ignored} below ignored)" if ignored else ""
            box = instances.gt_boxes.tensor[row].tolist()
            objects.append(DrawnObject(box, classes, group_of=groups[row], note=note, mask=masks[row]))
        return self.draw_objects(objects)

    def draw_instance_predictions(self, predictions: Instances, *, score_threshold: float = 0.0) -> VisImage:
        """Draw predictions; those that agree on the box share one text block (see `merge_predictions`).

        Args:
            predictions: fields `pred_boxes`, `pred_classes`, `scores`, and if present `pred_masks` (n, H, W)
                bool in pixels of the image.
            score_threshold: predictions with lower scores are left out.
        """
        shown = predictions[predictions.scores >= score_threshold].to("cpu")
        masks = list(shown.pred_masks.numpy()) if shown.has("pred_masks") else None
        columns = shown.pred_boxes.tensor, shown.pred_classes, shown.scores
        boxes, classes, scores = (column.detach().numpy() for column in columns)
        return self.draw_objects(merge_predictions(boxes, classes, scores, masks=masks))

    def draw_objects(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draw masks, then boxes, largest first, then the text blocks where there is room for them."""
        order = sorted(map(self._most_specific_first, objects), key=lambda one: -one.area)
        self._draw_masks([one for one in order if one.mask is not None])
        for one in order:
            box = tuple(float(value) * self.zoom for value in one.box)
            self.draw_box(box, alpha=0.9, edge_color=to_hex(one.color), line_style=one.line_style)
        self._draw_texts(order)
        return self.output

    def _most_specific_first(self, one: DrawnObject) -> DrawnObject:
        """Sort the labels by falling depth in the hierarchy; they stay as they are where depths are equal."""
        order = sorted(range(len(one.classes)), key=lambda place: -self._depth(one.classes[place]))
        scores = [one.scores[place] for place in order] if len(one.scores) else ()
        return replace(one, classes=[one.classes[place] for place in order], scores=scores)

    def _draw_masks(self, objects: Sequence[DrawnObject]) -> None:
        """Tint masks in the colours of the classes and outline them; later ones lie above earlier ones."""
        if not objects:
            return
        size = self.output.height, self.output.width
        masks = [fit_mask(np.asarray(one.mask), self._given, size) for one in objects]
        self.img = paint(self.img, masks, [one.color for one in objects])
        for image in list(self.output.ax.images):  # it would be drawn beneath the new one
            image.remove()
        self.output.reset_image(self.img)
        width = max(self._default_font_size * _OUTLINE_SHARE, 1) * self.output.scale
        for one, mask in zip(objects, masks, strict=True):
            path = outline(mask)
            if path is not None:
                color = self._change_color_brightness(one.color, brightness_factor=_OUTLINE_LIGHT)
                style: dict[str, Any] = {"edgecolor": color, "linestyle": one.line_style}
                self.output.ax.add_artist(PathPatch(path, fill=False, linewidth=width, alpha=0.9, **style))

    def _draw_texts(self, objects: Sequence[DrawnObject]) -> None:
        """Write the text blocks of objects, which come by falling area."""
        texts = {place: text for place, one in enumerate(objects) if (text := self.text_of(one))}
        chosen = sorted(texts, key=lambda place: -max(objects[place].scores, default=0))[: self.max_texts]
        if len(chosen) < len(texts):
            kind = "most certain" if any(len(one.scores) for one in objects) else "largest"
            logger.warning("text is written for the %d %s of %d boxes", len(chosen), kind, len(texts))
        boxes = torch.tensor([one.box for one in objects]).reshape(-1, 4) * self.zoom
        taken = boxes.new_zeros((0, 4))
        font_size = self._default_font_size * _TEXT_SHARE
        for place in sorted(chosen, reverse=True):  # small boxes have the least room: they choose first
            size = self._text_size(texts[place], font_size)
            block = self._free_place(boxes, place, size, taken)
            taken = torch.cat([taken, block[None]])
            color = to_hex(self._change_color_brightness(objects[place].color, brightness_factor=0.7))
            style: dict[str, Any] = {"font_size": font_size, "horizontal_alignment": "left"}
            self.draw_text(texts[place], tuple(block[:2].tolist()), color=color, **style)

    def text_of(self, one: DrawnObject) -> str:
        """Return the text block of an object: its labels (with their scores), then marks and note.

        Each label has a line; labels that follow from another one by the hierarchy, which come by falling
        depth, share a line per depth.
        """
        scores = one.scores if len(one.scores) else [None] * len(one.classes)
        words = {
            int(label): self._class_name(label) + ("" if score is None else f" {100 * score:.0f}%")
            for label, score in zip(one.classes, scores, strict=True)
        }
        shown = list(words)[:_MAX_LABELS]
        implied: set[int] = set()
        if self._hierarchy is not None:
            implied = {int(above) for label in shown for above in self._hierarchy.ancestors_of(label)}
        lines = [words[label] for label in shown if label not in implied]
        for _, same in itertools.groupby((label for label in shown if label in implied), key=self._depth):
            lines.append(", ".join(words[label] for label in same))
        if not len(one.scores):  # the labels of a true object belong together: they read as a sum
            lines = lines[:1] + [f"+ {line}" for line in lines[1:]]
        if len(words) > len(shown):
            lines.append(f"… {len(words) - len(shown)} more")
        marks = {"[group of]": one.group_of, "[ignored]": one.ignored, one.note: one.note}
        return "\n".join([*lines, *(mark for mark, on in marks.items() if on)])

    @property
    def _hierarchy(self) -> LabelHierarchy | None:
        return self.metadata.get("hierarchy", None)

    def _depth(self, label: int) -> int:
        return 0 if self._hierarchy is None else int(self._hierarchy.depth[label])

    def _class_name(self, label: int) -> str:
        names = self.metadata.get("thing_classes", None)
        return str(names[label]) if names else str(label)

    def _read_mask(self, segmentation: Any, where: str) -> np.ndarray | None:
        try:
            return read_mask(segmentation, *self._given)
        except ValueError as error:
            raise DataError(f"{where} has a segmentation {error}") from None

    def _truth_masks(self, instances: Instances) -> list[np.ndarray | None]:
        masks: list[np.ndarray | None] = [None] * len(instances)
        if instances.has("gt_masks"):
            values = instances.gt_masks
            values = values.polygons if isinstance(values, PolygonMasks) else values.tensor.cpu().numpy()
            for row, value in enumerate(values):
                if not instances.has("gt_has_mask") or instances.gt_has_mask[row]:
                    masks[row] = self._read_mask(value, f"object {row}")
        return masks

    def _text_size(self, text: str, font_size: float) -> tuple[float, float]:
        """Return width and height in output pixels of a text as `draw_text` draws it."""
        probe = self.output.ax.text(0, 0, text, size=font_size * self.output.scale, family="sans-serif")
        extent = probe.get_window_extent(self.output.canvas.get_renderer())
        probe.remove()
        return extent.width + _TEXT_MARGIN, extent.height + _TEXT_MARGIN

    def _free_place(
        self, boxes: torch.Tensor, index: int, size: tuple[float, float], taken: torch.Tensor
    ) -> torch.Tensor:
        """Choose the rectangle (4,) of a box's text: inside the image, near the box, least overlap."""
        x = torch.tensor(_text_corners(boxes[index].tolist(), *size))
        room = x.new_tensor([self.output.width, self.output.height]) - x.new_tensor(size)
        x = torch.minimum(x, room).clamp(min=0)
        places = Boxes(torch.cat([x, x + x.new_tensor(size)], dim=1))
        on_boxes = pairwise_intersection(places, Boxes(boxes))
        # Covering an object is a lesser evil than covering another text.
        cost = 2 * pairwise_intersection(places, Boxes(taken)).sum(1)
        cost += 0.25 * on_boxes.sum(1) + 0.25 * on_boxes[:, index] + torch.arange(len(x))
        return places.tensor[cost.argmin()]


def _text_corners(box: Sequence[float], width: float, height: float) -> list[tuple[float, float]]:
    """Return upper left corners for a text, the best first: beside the box, in it, further off."""
    x0, y0, x1, y1 = box
    above, below, right, left = (x0, y0 - height), (x0, y1), (x1, y0), (x0 - width, y0)
    near = [above, below, right, left, (x0, y0), (x1, y1), (x1 - width, y1), (x1 - width, y0 - height)]
    near += [(x1, y1 - height), (x0 - width, y1 - height)]
    rows = (y0 - 2 * height, y1 + height, y0 - 3 * height, y1 + 2 * height)
    return near + [(x, y) for y in rows for x in (x0, x1 - width)]
