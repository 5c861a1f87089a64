"""Drawing objects that bear several labels, on top of Detectron2's `Visualizer`.

Lines, text and the canvas are Detectron2's. What is added: one text block for all the labels of a box, most
specific label first; a colour that belongs to the class; marks for group-of and ignored objects; masks under
all boxes, each pixel tinted once; room for the text (small pictures are enlarged, blocks are moved so that
they stay inside the picture and off each other).
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from PIL import Image

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.mask_drawing import fit_mask, outline, paint, read_segmentation

__all__ = [
    "DrawnObject",
    "MultiLabelVisualizer",
    "class_color",
    "labels_metadata",
    "merge_predictions",
    "room_for",
]

_GOLDEN_RATIO = 0.618033988749895
_FONT_SHARE = 0.8
"""Size of the text beside boxes as a share of the visualizer's font size."""
_OUTLINE_SHARE = 0.1
"""Width of the line around a mask as a share of the font size; that of a box is 0.25."""
_OUTLINE_LIGHT = 0.15
"""How much lighter than the class's colour the line around a mask is."""
_LEAST_SIDE = 384
_MOST_ROOM = 960
_ROOM_OF_AN_OBJECT = 24
"""Pixels of the longer side; see `room_for`."""
_TEXT_MARGIN = 3
"""Pixels between a text block and whatever it must not touch."""


@dataclass(frozen=True)
class DrawnObject:
    """One box, what is written beside it, and its mask.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the picture as it was given.
        classes: class indices, most specific or most certain first; the first one gives the colour.
        scores: one value in [0, 1] per class, or empty (truth has no scores).
        group_of: the box encloses a group (dashed outline).
        ignored: the object takes no part in training or evaluation (dotted outline).
        note: a further line of text.
        mask: (H, W) bool in pixels of the picture as it was given, or None.
    """

    box: Sequence[float]
    classes: Sequence[int]
    scores: Sequence[float] = ()
    group_of: bool = False
    ignored: bool = False
    note: str = ""
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)


def class_color(index: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class: the same in every picture, neighbours in the class order far apart."""
    hue = (index * _GOLDEN_RATIO + 0.08) % 1.0
    return colorsys.hls_to_rgb(hue, (0.62, 0.52, 0.72)[index % 3], (0.95, 0.8)[index // 3 % 2])


def room_for(objects: int, least: int = _LEAST_SIDE) -> int:
    """Length in pixels for the longer side of a picture, so that the texts of so many objects have room."""
    return max(least, min(_ROOM_OF_AN_OBJECT * objects, _MOST_ROOM))


def labels_metadata(class_names: Sequence[str], hierarchy: LabelHierarchy | None = None) -> Metadata:
    """Detectron2 metadata for the visualizer, without registering a data set."""
    metadata = Metadata()
    metadata.set(thing_classes=list(class_names))
    if hierarchy is not None:
        metadata.set(hierarchy=hierarchy)
    return metadata


def merge_predictions(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    iou: float = 0.65,
    masks: Sequence[np.ndarray | None] | None = None,
) -> list[DrawnObject]:
    """Joins the predictions that say different things about one box.

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
    overlaps = pairwise_iou(tensor, tensor).numpy()
    groups: list[list[int]] = []
    for row in np.argsort(-np.asarray(scores), kind="stable").tolist():
        for group in groups:
            said = [classes[other] for other in group]
            if overlaps[row, group[0]] >= iou and classes[row] not in said:
                group.append(row)
                break
        else:
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

    Coordinates are those of the picture as it is given; a picture whose longer side is below `min_size` is
    enlarged before anything is drawn, one whose longer side is above `max_size` is shrunk.

    Attributes:
        zoom: pixels of the output per pixel of the given picture.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        *,
        min_size: int = _LEAST_SIDE,
        max_size: int | None = None,
        max_labels: int = 8,
    ) -> None:
        """Prepares the canvas.

        Args:
            img_rgb: (H, W, 3) RGB picture in [0, 255].
            metadata: gives `thing_classes` (names) and, if there, `hierarchy`; see `labels_metadata`.
            min_size: least length in pixels of the longer side of the output; see `room_for`.
            max_size: greatest length in pixels of the longer side of the output; None sets no limit.
            max_labels: labels written beside a box; further ones are counted.
        """
        picture = np.ascontiguousarray(np.asarray(img_rgb).clip(0, 255).astype(np.uint8))
        height, width = picture.shape[:2]
        self._given = height, width
        longest = max(height, width, 1)
        self.zoom = max(1.0, min_size / longest)
        if max_size is not None:
            self.zoom = min(self.zoom, max_size / longest)
        if self.zoom != 1:
            size = max(round(height * self.zoom), 1), max(round(width * self.zoom), 1)
            way = Image.Resampling.BILINEAR if self.zoom > 1 else Image.Resampling.LANCZOS
            picture = ResizeTransform(height, width, *size, interp=way).apply_image(picture)
        super().__init__(picture, metadata)
        self.max_labels = max_labels

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draws the annotations of a record in Detectron2's form.

        Several labels come from `category_ids` (else `category_id`), groups from `is_group_of`, masks from
        `segmentation`; objects with `iscrowd` are drawn as ignored.

        Raises:
            DataError: a mask that is malformed or does not fit the picture.
        """
        objects = []
        for number, annotation in enumerate(dic.get("annotations", ())):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            classes = annotation.get("category_ids") or [annotation["category_id"]]
            objects.append(
                DrawnObject(
                    [float(value) for value in box],
                    self.most_specific_first(classes),
                    group_of=bool(annotation.get("is_group_of", False)),
                    ignored=bool(annotation.get("iscrowd", 0)),
                    mask=self._read_mask(
                        annotation.get("segmentation"), f"image {dic.get('image_id')!r}: annotation {number}"
                    ),
                )
            )
        return self.draw_objects(objects)

    def draw_truth(self, instances: Instances) -> VisImage:
        """Draws training truth as the mapper hands it to the model.

        Args:
            instances: fields `gt_boxes`, `gt_classes`, and if present `gt_labels` (N, K) in {1, 0, -1},
                `gt_group_of`, and `gt_masks`, of which those are drawn that `gt_has_mask` does not rule out.
                Classes that are ignored for an object are counted in a note.
        """
        boxes = self._box_array(instances.gt_boxes)
        masks = self._truth_masks(instances)
        truth = instances.gt_labels.cpu().numpy() if instances.has("gt_labels") else None
        groups = instances.gt_group_of.tolist() if instances.has("gt_group_of") else [False] * len(boxes)
        objects = []
        for row, (box, label) in enumerate(zip(boxes.tolist(), instances.gt_classes.tolist(), strict=True)):
            classes, ignored = [label], 0
            if truth is not None:
                others = [index for index in np.flatnonzero(truth[row] == 1).tolist() if index != label]
                classes += self.most_specific_first(others)
                ignored = int((truth[row] == -1).sum())
            note = f"({ignored} below ignored)" if ignored else ""
            objects.append(DrawnObject(box, classes, group_of=groups[row], note=note, mask=masks[row]))
        return self.draw_objects(objects)

    def draw_instance_predictions(
        self, predictions: Instances, *, score_threshold: float = 0.0, merge_iou: float = 0.65
    ) -> VisImage:
        """Draws predictions; those that agree on the box share one text block (see `merge_predictions`).

        Args:
            predictions: fields `pred_boxes`, `pred_classes`, `scores`, and if present `pred_masks` (n, H, W)
                bool in pixels of the picture.
            score_threshold: predictions with lower scores are left out.
            merge_iou: overlap from which on predictions of different classes are one object.
        """
        scores = predictions.scores.detach().cpu().numpy()
        kept = scores >= score_threshold
        boxes = self._box_array(predictions.pred_boxes)[kept]
        classes = predictions.pred_classes.cpu().numpy()[kept]
        masks = None
        if predictions.has("pred_masks"):
            masks = [predictions.pred_masks[row].cpu().numpy() for row in np.flatnonzero(kept).tolist()]
        return self.draw_predictions(merge_predictions(boxes, classes, scores[kept], merge_iou, masks))

    def draw_predictions(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draws merged predictions, the labels of each by falling depth in the hierarchy, then by score."""
        ordered = []
        for one in objects:
            score = dict(zip(one.classes, one.scores, strict=True))
            classes = self.most_specific_first(sorted(one.classes, key=lambda label: -score[label]))
            ordered.append(replace(one, classes=classes, scores=[score[label] for label in classes]))
        return self.draw_objects(ordered)

    def draw_objects(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draws masks, then boxes, largest first, then the text blocks where there is room for them."""
        order = sorted(objects, key=lambda one: -_area(one.box))
        self._draw_masks(order)
        for one in order:
            self.draw_box(
                self._zoomed(one.box),
                alpha=0.9,
                edge_color=to_hex(self._color(one)),
                line_style=_line_style(one),
            )
        taken: list[tuple[float, float, float, float]] = []
        for one in reversed(order):  # small boxes have the least room: they choose first
            text = self.text_of(one)
            if not text:
                continue
            size = self._default_font_size * _FONT_SHARE
            others = [self._zoomed(other.box) for other in order if other is not one]
            place = self._free_place(self._zoomed(one.box), self._text_size(text, size), taken, others)
            taken.append(place)
            color = to_hex(self._change_color_brightness(self._color(one), brightness_factor=0.7))
            self.draw_text(text, place[:2], color=color, font_size=size, horizontal_alignment="left")
        return self.output

    def _draw_masks(self, objects: Sequence[DrawnObject]) -> None:
        """Tints masks in the colours of the classes and outlines them; later ones lie above earlier ones."""
        size = self.output.height, self.output.width
        bearers = [one for one in objects if one.mask is not None]
        if not bearers:
            return
        masks = [fit_mask(np.asarray(one.mask), self._given, size) for one in bearers]
        self.img = paint(self.img, masks, [self._color(one) for one in bearers])
        for image in list(self.output.ax.images):  # it would be drawn beneath the new one
            image.remove()
        self.output.reset_image(self.img)
        width = max(self._default_font_size * _OUTLINE_SHARE, 1) * self.output.scale
        for one, mask in zip(bearers, masks, strict=True):
            path = outline(mask)
            if path is None:
                continue
            color = self._change_color_brightness(self._color(one), brightness_factor=_OUTLINE_LIGHT)
            patch = PathPatch(
                path, fill=False, edgecolor=color, linewidth=width, linestyle=_line_style(one), alpha=0.9
            )
            self.output.ax.add_artist(patch)

    def text_of(self, one: DrawnObject) -> str:
        """Text block of an object: its labels (with their scores), then marks and note.

        Each label has a line; labels that follow from another one by the hierarchy share a line per depth.
        """
        scores = one.scores if len(one.scores) else [None] * len(one.classes)
        words = {
            int(label): self._class_name(label) + ("" if score is None else f" {100 * score:.0f}%")
            for label, score in zip(one.classes, scores, strict=True)
        }
        shown = list(words)[: self.max_labels]
        lines = self._label_lines(shown, words)
        if not len(one.scores):  # the labels of a true object belong together: they read as a sum
            lines = lines[:1] + [f"+ {line}" for line in lines[1:]]
        if len(words) > len(shown):
            lines.append(f"… {len(words) - len(shown)} more")
        lines += [mark for mark, on in (("[group of]", one.group_of), ("[ignored]", one.ignored)) if on]
        if one.note:
            lines.append(one.note)
        return "\n".join(lines)

    def _label_lines(self, labels: Sequence[int], words: Mapping[int, str]) -> list[str]:
        hierarchy = self._hierarchy()
        if hierarchy is None:
            return [words[label] for label in labels]
        implied = {int(above) for label in labels for above in hierarchy.ancestors_of(label)}
        lines = [words[label] for label in labels if label not in implied]
        by_depth: dict[int, list[str]] = {}
        for label in labels:
            if label in implied:
                by_depth.setdefault(int(hierarchy.depth[label]), []).append(words[label])
        return lines + [", ".join(by_depth[depth]) for depth in sorted(by_depth, reverse=True)]

    def _hierarchy(self) -> LabelHierarchy | None:
        hierarchy = self.metadata.get("hierarchy", None)
        return hierarchy if isinstance(hierarchy, LabelHierarchy) else None

    def most_specific_first(self, classes: Sequence[int]) -> list[int]:
        """The labels by falling depth in the hierarchy; as they come where depths are equal or unknown."""
        hierarchy = self._hierarchy()
        if hierarchy is None:
            return [int(label) for label in classes]
        return sorted((int(label) for label in classes), key=lambda label: -int(hierarchy.depth[label]))

    def _class_name(self, label: int) -> str:
        names = self.metadata.get("thing_classes", None)
        return str(names[label]) if names else str(label)

    def _color(self, one: DrawnObject) -> tuple[float, float, float]:
        return class_color(int(one.classes[0])) if len(one.classes) else (0.8, 0.8, 0.8)

    def _zoomed(self, box: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(value) * self.zoom for value in box)

    def _box_array(self, boxes: Boxes) -> np.ndarray:
        return boxes.tensor.detach().cpu().numpy().reshape(-1, 4)

    def _read_mask(self, segmentation: Any, where: str) -> np.ndarray | None:
        try:
            return read_segmentation(segmentation, *self._given)
        except ValueError as error:
            raise DataError(f"{where} has a segmentation {error}") from None

    def _truth_masks(self, instances: Instances) -> list[np.ndarray | None]:
        if not instances.has("gt_masks"):
            return [None] * len(instances)
        masks = instances.gt_masks
        values = masks.polygons if isinstance(masks, PolygonMasks) else masks.tensor.cpu().numpy()
        known = instances.gt_has_mask.tolist() if instances.has("gt_has_mask") else [True] * len(instances)
        return [
            self._read_mask(value, f"object {row}") if known[row] else None
            for row, value in enumerate(values)
        ]

    def _text_size(self, text: str, font_size: float) -> tuple[float, float]:
        """Width and height in output pixels of a text as `draw_text` draws it."""
        probe = self.output.ax.text(0, 0, text, size=font_size * self.output.scale, family="sans-serif")
        extent = probe.get_window_extent(self.output.canvas.get_renderer())
        probe.remove()
        return extent.width + _TEXT_MARGIN, extent.height + _TEXT_MARGIN

    def _free_place(
        self,
        box: tuple[float, ...],
        size: tuple[float, float],
        taken: Sequence[tuple[float, ...]],
        others: Sequence[tuple[float, ...]],
    ) -> tuple[float, float, float, float]:
        """Rectangle for a text block: inside the picture, near the box, least overlap with other blocks."""
        width, height = size
        places = []
        for rank, (x, y) in enumerate(_text_corners(box, width, height)):
            x = float(np.clip(x, 0, max(self.output.width - width, 0)))
            y = float(np.clip(y, 0, max(self.output.height - height, 0)))
            place = (x, y, x + width, y + height)
            hidden = 2 * sum(_intersection(place, other) for other in taken)
            # Covering an object is a lesser evil than covering another text.
            hidden += 0.5 * _intersection(place, box)
            hidden += 0.25 * sum(_intersection(place, other) for other in others)
            cost = hidden + rank
            places.append((cost, rank, place))
        return min(places)[2]


def _text_corners(box: Sequence[float], width: float, height: float) -> list[tuple[float, float]]:
    """Upper left corners for a text of so many pixels, the best first: beside the box, in it, further off."""
    x0, y0, x1, y1 = box
    above, below, right, left = (x0, y0 - height), (x0, y1), (x1, y0), (x0 - width, y0)
    near = [above, below, right, left, (x0, y0), (x1, y1), (x1 - width, y1), (x1 - width, y0 - height)]
    near += [(x1, y1 - height), (x0 - width, y1 - height)]
    rows = (y0 - 2 * height, y1 + height, y0 - 3 * height, y1 + 2 * height)
    return near + [(x, y) for y in rows for x in (x0, x1 - width)]


def _line_style(one: DrawnObject) -> str:
    return ":" if one.ignored else "--" if one.group_of else "-"


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _intersection(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
