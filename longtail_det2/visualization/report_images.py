"""Which validation images a report shows, and their drawings: truth and predictions side by side."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from PIL import Image

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.images import read_image
from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.structures.multi_label import IGNORED, NEGATIVE, POSITIVE
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import pluralize

from .image_labels import MISSED, RIGHT, UNKNOWN, WRONG, Label, add_labels
from .multi_label_visualizer import MultiLabelVisualizer, labels_metadata, merge_predictions, room_for
from .plots import INK, data_uri
from .predictions import Predictions, default_threshold, read_predictions

logger = logging.getLogger(__name__)

_MOST_CANDIDATES = 2000  # larger data sets are sampled evenly
_SMALLEST_SIDE, _LARGEST_SIDE = 480, 640  # in pixels: room for the text, and a report that stays small
_LABELLED_SIDE = 480  # without boxes a smaller image will do


class ImageScore(NamedTuple):
    """How well the drawn predictions of one image agree with its truth."""

    index: int  # of the image in the store
    found: list[int]  # classes of the labels for which a prediction of the class overlaps the object enough
    missed: list[int]  # those of the other labels
    wrong: int  # predictions that say something untrue about all objects they overlap, or overlap none


def score_image(store: AnnotationStore, index: int, predictions: Predictions | None) -> ImageScore:
    """Compare the predictions of an image (already cut at a score) with its truth.

    The rule is simpler than the metric's: a label is found if a prediction of its class overlaps its box by
    0.5 (for a group: lies in it by 0.5). A prediction is wrong if its class is neither label, ancestor nor
    descendant of a label of any object that it overlaps so. Labels of whole images are compared as the metric
    compares them.
    """
    if predictions is not None and predictions.truth is not None:
        truth = predictions.truth[index]
        predicted = np.isin(np.arange(len(truth)), predictions.cls)
        found, missed = (np.flatnonzero((truth == POSITIVE) & (predicted == yes)) for yes in (True, False))
        wrong = int((predicted & (truth == NEGATIVE)).sum())
        return ImageScore(index, found.tolist(), missed.tolist(), wrong)
    if predictions is None and not store.num_objects:
        offsets, labels = store.present_labels
        return ImageScore(index, [], labels[slice(*offsets[index : index + 2])].tolist(), 0)
    objects = slice(*store.object_offsets[index : index + 2].tolist())
    offsets = store.label_offsets[objects.start : objects.stop + 1]
    labels = store.labels[offsets[0] : offsets[-1]].astype(np.int64)
    if predictions is None or not len(predictions):
        return ImageScore(index, [], labels.tolist(), 0)
    truth, boxes = (Boxes(torch.tensor(box).float()) for box in (store.boxes[objects], predictions.box))
    group = (store.flags[objects] & int(ObjectFlag.GROUP_OF)) != 0
    overlap = np.where(group[:, None], pairwise_ioa(truth, boxes).numpy(), pairwise_iou(truth, boxes).numpy())
    near = overlap.repeat(np.diff(offsets), axis=0) >= 0.5
    found = (near & (predictions.cls == labels[:, None])).any(axis=1)
    related = store.hierarchy.encode([[label] for label in labels.tolist()]) != 0
    wrong = int((~(near & related[:, predictions.cls]).any(axis=0)).sum())
    return ImageScore(index, labels[found].tolist(), labels[~found].tolist(), wrong)


def compare_labels(
    store: AnnotationStore, one: ImageScore, predictions: Predictions | None
) -> dict[str, list[Label]]:
    """Return the labels of a whole image as text in colours: "truth" and, if given, "predictions"."""
    names = store.class_names
    if predictions is None or predictions.truth is None:
        return {"truth": [(names[label], INK) for label in one.missed]}
    truth = [(f"✓ {names[label]}", RIGHT) for label in one.found]
    truth += [(f"○ {names[label]}", MISSED) for label in one.missed]
    marks = {POSITIVE: ("✓", RIGHT), NEGATIVE: ("✗", WRONG), IGNORED: ("?", UNKNOWN)}
    predicted = []
    for label, score in zip(predictions.cls.tolist(), predictions.score.tolist(), strict=True):
        mark, color = marks[int(predictions.truth[one.index, label])]
        predicted.append((f"{mark} {names[label]} {100 * score:.0f}%", color))
    return {"truth": truth, "predictions": predicted}


def choose_images(scores: Sequence[ImageScore], rare: set[int], count: int) -> list[tuple[ImageScore, str]]:
    """Choose about equally many images with missed rare classes, of the best, and of the worst; none twice.

    At most `count`, none without objects, each with the reason why it is shown; `rare` are class indices.
    """

    def rare_missed(one: ImageScore) -> int:
        return sum(label in rare for label in one.missed)

    def quality(one: ImageScore) -> float:  # F-measure
        return 2 * len(one.found) / (2 * len(one.found) + len(one.missed) + one.wrong)

    candidates = [one for one in scores if one.found or one.missed]
    orders = {
        "rare classes missed": sorted(filter(rare_missed, candidates), key=rare_missed, reverse=True),
        "among the best": sorted(filter(quality, candidates), key=quality, reverse=True),
        "among the worst": sorted(candidates, key=quality),
    }
    chosen: dict[int, tuple[ImageScore, str]] = {}
    for number, (reason, order) in enumerate(orders.items(), 1):
        for one in order:
            if len(chosen) < min(count, len(candidates)) * number // len(orders):
                chosen.setdefault(one.index, (one, reason))
    return list(chosen.values())


def draw_images(
    store: AnnotationStore, path: Path | None, rare: set[int], count: int, threshold: float | None
) -> dict[str, Any]:
    """Choose and draw at most `count` images of the validation truth, for the report.

    Images that cannot be read are left out with a warning. Without a file of predictions (`path`) the truth
    is drawn alone. A threshold of None chooses the score from which predictions are drawn.

    Raises:
        DataError: the predictions cannot be read, or do not fit `store`.
    """
    above = None
    if path is not None:
        above = read_predictions(path, store)
        threshold = default_threshold(store, above) if threshold is None else threshold
        above = above.above(threshold)
    step = max(len(store) // _MOST_CANDIDATES, 1)
    shown = {k: None if above is None else above.of_image(k) for k in range(0, len(store), step)}
    of_images = not store.num_objects if above is None else above.truth is not None
    metadata = labels_metadata(store.class_names, store.hierarchy)
    images: list[dict[str, Any]] = []
    for one, reason in choose_images([score_image(store, *pair) for pair in shown.items()], rare, count):
        try:
            if of_images:
                pair = {"image": _draw_image(store, one.index, metadata, _LABELLED_SIDE)}
            else:
                pair = draw_pair(store, one.index, shown[one.index], metadata)
        except DataError as error:
            logger.warning("image left out: %s", error)
            continue
        image = {"id": store.image_ids[one.index].decode()}
        if of_images:
            image["labels"] = compare_labels(store, one, shown[one.index])
        if above is not None:
            image |= {"reason": reason, "caption": _caption(store, one)}
        images.append({**image, "drawings": {name: _jpeg_uri(pixels) for name, pixels in pair.items()}})
    shown_from = None if above is None else threshold
    return {"images": images, "threshold": shown_from, "masks": store.has_masks, "of_images": of_images}


def draw_pair(
    store: AnnotationStore,
    index: int,
    predictions: Predictions | None,
    metadata: Metadata,
    *,
    largest_side: int = _LARGEST_SIDE,
) -> dict[str, np.ndarray]:
    """Draw the truth and, if given, the predictions of the image at an index of the store.

    Returns:
        "truth" and perhaps "predictions", (H, W, 3) uint8 RGB, shrunk where a side exceeds `largest_side`.
        Labels of whole images are written below.

    Raises:
        DataError: the image cannot be read, or a mask is malformed or does not fit it.
    """
    if predictions is not None and predictions.truth is not None:
        pixels = _draw_image(store, index, metadata, largest_side)
        labels = compare_labels(store, score_image(store, index, predictions), predictions)
        pair = {name: add_labels(pixels, some) for name, some in labels.items()}
        height = max(len(one) for one in pair.values())
        room = {name: [(0, height - len(one)), (0, 0), (0, 0)] for name, one in pair.items()}
        return {name: np.pad(one, room[name], constant_values=255) for name, one in pair.items()}
    record = MultiLabelDataset(store)[index]
    pixels = read_image(record["file_name"], "RGB", image_id=record["image_id"])
    objects = []
    if predictions is not None:
        boxes = predictions.box * np.tile(pixels.shape[1::-1], 2)
        objects = merge_predictions(boxes, predictions.cls, predictions.score, mask_of=predictions.mask_of)
    room = room_for(max(len(record.get("annotations", ())), len(objects)), _SMALLEST_SIDE)
    size = {"min_size": room, "max_size": largest_side}
    pair = {"truth": MultiLabelVisualizer(pixels, metadata, **size).draw_dataset_dict(record).get_image()}
    if predictions is not None:
        try:
            drawn = MultiLabelVisualizer(pixels, metadata, **size).draw_objects(objects)
        except DataError as error:
            raise DataError(f"image {record['image_id']!r}: {error}") from None
        pair["predictions"] = drawn.get_image()
    return pair


def _draw_image(store: AnnotationStore, index: int, metadata: Metadata, largest_side: int) -> np.ndarray:
    record = MultiLabelDataset(store)[index]
    pixels = read_image(record["file_name"], "RGB", image_id=record["image_id"])
    return MultiLabelVisualizer(pixels, metadata, min_size=_SMALLEST_SIDE, max_size=largest_side).img


def _caption(store: AnnotationStore, one: ImageScore) -> str:
    text = f"{len(one.found)} of {pluralize(len(one.found) + len(one.missed), 'label')} found"
    text += f", {pluralize(one.wrong, 'wrong prediction')}." if one.wrong else "."
    missed = Counter(store.class_names[label] for label in one.missed)
    names = [f"{name} × {n}" if n > 1 else name for name, n in missed.items()]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{text} Missed: {', '.join(names[:6])}{more}." if names else text


def _jpeg_uri(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=88, optimize=True)
    return data_uri("jpeg", stream.getvalue())
