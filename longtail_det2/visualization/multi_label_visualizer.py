"""Drawing objects that bear several labels, on top of Detectron2's `Visualizer`.

Lines, text and the canvas are Detectron2's. What is added: one text block for all the labels of a box, most
specific label first; a colour that belongs to the class; marks for group-of and ignored objects; room for the
text (small pictures are enlarged, blocks are moved so that they stay inside the picture and off each other).
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.colors import to_hex

from longtail_det2.data.hierarchy import LabelHierarchy

__all__ = ["DrawnObject", "MultiLabelVisualizer", "class_color", "labels_metadata", "merge_predictions"]

_GOLDEN_RATIO = 0.618033988749895
_FONT_SHARE = 0.8
"""Size of the text beside boxes as a share of the visualizer's font size."""
_TEXT_MARGIN = 3
"""Pixels between a text block and whatever it must not touch."""


@dataclass(frozen=True)
class DrawnObject:
    """One box and what is written beside it.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the picture as it was given.
        classes: class indices, most specific or most certain first; the first one gives the colour.
        scores: one value in [0, 1] per class, or empty (truth has no scores).
        group_of: the box encloses a group (dashed outline).
        ignored: the object takes no part in training or evaluation (dotted outline).
        note: a further line of text.
    """

    box: Sequence[float]
    classes: Sequence[int]
    scores: Sequence[float] = ()
    group_of: bool = False
    ignored: bool = False
    note: str = ""


def class_color(index: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class: the same in every picture, neighbours in the class order far apart."""
    hue = (index * _GOLDEN_RATIO + 0.08) % 1.0
    return colorsys.hls_to_rgb(hue, (0.62, 0.52, 0.72)[index % 3], (0.95, 0.8)[index // 3 % 2])


def labels_metadata(class_names: Sequence[str], hierarchy: LabelHierarchy | None = None) -> Metadata:
    """Detectron2 metadata for the visualizer, without registering a data set."""
    metadata = Metadata()
    metadata.set(thing_classes=list(class_names))
    if hierarchy is not None:
        metadata.set(hierarchy=hierarchy)
    return metadata


def merge_predictions(
    boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, iou: float = 0.65
) -> list[DrawnObject]:
    """Joins the predictions that say different things about one box.

    Detectors emit a multi-label object as several (box, class, score) rows. From the highest score down,
    a row joins the first object that lacks its class and whose box it overlaps enough; else it starts one.

    Args:
        boxes: (n, 4) XYXY pixels.
        classes: (n,) class indices.
        scores: (n,) in [0, 1].
        iou: least intersection over union for joining, in (0, 1].

    Returns:
        Objects with the box of their best row, by falling best score; labels by falling score.
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
        )
        for group in groups
    ]


class MultiLabelVisualizer(Visualizer):
    """Detectron2's `Visualizer` for boxes with several labels.

    Coordinates are those of the picture as it is given; a picture whose longer side is below `min_size` is
    enlarged before anything is drawn. Only boxes are drawn, no masks or keypoints.

    Attributes:
        zoom: pixels of the output per pixel of the given picture, at least 1.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        *,
        min_size: int = 384,
        max_labels: int = 8,
    ) -> None:
        """Prepares the canvas.

        Args:
            img_rgb: (H, W, 3) RGB picture in [0, 255].
            metadata: gives `thing_classes` (names) and, if there, `hierarchy`; see `labels_metadata`.
            min_size: least length in pixels of the longer side of the output.
            max_labels: labels written beside a box; further ones are counted.
        """
        picture = np.ascontiguousarray(np.asarray(img_rgb).clip(0, 255).astype(np.uint8))
        height, width = picture.shape[:2]
        self.zoom = max(1.0, min_size / max(height, width, 1))
        if self.zoom > 1:
            size = round(height * self.zoom), round(width * self.zoom)
            picture = ResizeTransform(height, width, *size).apply_image(picture)
        super().__init__(picture, metadata)
        self.max_labels = max_labels

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draws the annotations of a record in Detectron2's form.

        Several labels come from `category_ids` (else `category_id`), groups from `is_group_of`; objects with
        `iscrowd` are drawn as ignored.
        """
        objects = []
        for annotation in dic.get("annotations", ()):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            classes = annotation.get("category_ids") or [annotation["category_id"]]
            objects.append(
                DrawnObject(
                    [float(value) for value in box],
                    self.most_specific_first(classes),
                    group_of=bool(annotation.get("is_group_of", False)),
                    ignored=bool(annotation.get("iscrowd", 0)),
                )
            )
        return self.draw_objects(objects)

    def draw_truth(self, instances: Instances) -> VisImage:
        """Draws training truth as the mapper hands it to the model.

        Args:
            instances: fields `gt_boxes`, `gt_classes`, and if present `gt_labels` (N, K) in {1, 0, -1} and
                `gt_group_of`. Classes that are ignored for an object are counted in a note.
        """
        boxes = self._box_array(instances.gt_boxes)
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
            objects.append(DrawnObject(box, classes, group_of=groups[row], note=note))
        return self.draw_objects(objects)

    def draw_instance_predictions(
        self, predictions: Instances, *, score_threshold: float = 0.0, merge_iou: float = 0.65
    ) -> VisImage:
        """Draws predictions; those that agree on the box share one text block (see `merge_predictions`).

        Args:
            predictions: fields `pred_boxes`, `pred_classes`, `scores`.
            score_threshold: predictions with lower scores are left out.
            merge_iou: overlap from which on predictions of different classes are one object.
        """
        scores = predictions.scores.detach().cpu().numpy()
        kept = scores >= score_threshold
        boxes = self._box_array(predictions.pred_boxes)[kept]
        classes = predictions.pred_classes.cpu().numpy()[kept]
        return self.draw_predictions(merge_predictions(boxes, classes, scores[kept], merge_iou))

    def draw_predictions(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draws merged predictions, the labels of each by falling depth in the hierarchy, then by score."""
        ordered = []
        for one in objects:
            score = dict(zip(one.classes, one.scores, strict=True))
            classes = self.most_specific_first(sorted(one.classes, key=lambda label: -score[label]))
            ordered.append(replace(one, classes=classes, scores=[score[label] for label in classes]))
        return self.draw_objects(ordered)

    def draw_objects(self, objects: Sequence[DrawnObject]) -> VisImage:
        """Draws boxes, largest first, then their text blocks where there is room for them."""
        order = sorted(objects, key=lambda one: -_area(one.box))
        for one in order:
            style = ":" if one.ignored else "--" if one.group_of else "-"
            self.draw_box(
                self._zoomed(one.box), alpha=0.9, edge_color=to_hex(self._color(one)), line_style=style
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
        x0, y0, x1, y1 = box
        width, height = size
        above, below, right, left = (x0, y0 - height), (x0, y1), (x1, y0), (x0 - width, y0)
        corners = (above, below, right, left, (x0, y0), (x1, y1), (x1 - width, y1))
        places = []
        for rank, (x, y) in enumerate(corners):
            x = float(np.clip(x, 0, max(self.output.width - width, 0)))
            y = float(np.clip(y, 0, max(self.output.height - height, 0)))
            place = (x, y, x + width, y + height)
            hidden = sum(_intersection(place, other) for other in taken)
            # Covering an object is a lesser evil than covering another text.
            hidden += 0.5 * _intersection(place, box)
            hidden += 0.25 * sum(_intersection(place, other) for other in others)
            cost = hidden + rank
            places.append((cost, rank, place))
        return min(places)[2]


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _intersection(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
