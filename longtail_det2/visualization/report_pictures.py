"""Pictures of a validation store: truth and predictions side by side, as data URIs."""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.images import read_image
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import Detections
from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.multi_label_visualizer import (
    DrawnObject,
    MultiLabelVisualizer,
    labels_metadata,
    merge_predictions,
    room_for,
)
from longtail_det2.visualization.picture_choice import Tally, choose, tally_image
from longtail_det2.visualization.predictions import MaskedDetections, select_rows

logger = logging.getLogger(__name__)

__all__ = ["DetectionsByImage", "Picture", "draw_pair", "draw_pictures"]

_MOST_IMAGES = 2000
"""Images looked at when choosing; larger data sets are sampled evenly."""
_SMALLEST_SIDE = 480
"""Smaller pictures are enlarged to this many pixels, to make room for the text."""
_LARGEST_SIDE = 640
"""Photographs are shrunk to this many pixels, so that the report stays small."""


@dataclass(frozen=True)
class Picture:
    """One row of the report's pictures.

    Attributes:
        image_id: name of the image.
        reason: why it is shown.
        caption: what was found, missed and wrongly said; empty without predictions.
        truth, predictions: JPEG as data URI; `predictions` is empty without predictions.
    """

    image_id: str
    reason: str
    caption: str
    truth: str
    predictions: str


class DetectionsByImage:
    """Looks detections up by image."""

    def __init__(self, detections: Detections, score_threshold: float = 0.0) -> None:
        """Keeps the detections with at least `score_threshold`."""
        rows = np.flatnonzero(detections.score >= score_threshold)
        self._rows = rows[np.argsort(detections.image[rows], kind="stable")]
        self._images = detections.image[self._rows]
        self._all = detections

    def __getitem__(self, image: int) -> Detections:
        """The detections of an image of the store, with their masks if they have any; possibly none."""
        first, last = np.searchsorted(self._images, (image, image + 1))
        return select_rows(self._all, self._rows[first:last])


def draw_pictures(
    store: AnnotationStore,
    detections: Detections | None,
    groups: Mapping[int, str],
    *,
    count: int = 12,
    score_threshold: float | None = None,
) -> tuple[list[Picture], float]:
    """Chooses and draws validation pictures.

    Args:
        store: validation truth. Images that cannot be read are passed over with a warning.
        detections: predictions with image indices of the store and normalised boxes; None draws truth alone.
        groups: frequency group ("head", "medium", "tail") by class index.
        count: most pictures.
        score_threshold: predictions with lower scores are not drawn; None: see `default_threshold`.

    Returns:
        The pictures and the score threshold that was used.
    """
    threshold = (
        default_threshold(len(store.labels), detections) if score_threshold is None else score_threshold
    )
    by_image = None if detections is None else DetectionsByImage(detections, threshold)
    step = max(len(store) // _MOST_IMAGES, 1)
    tallies = [
        tally_image(store, index, None if by_image is None else by_image[index])
        for index in range(0, len(store), step)
    ]
    try:
        dataset = MultiLabelDataset(store)
    except DataError as error:
        logger.warning("no pictures: %s", error)
        return [], threshold
    pictures = []
    for tally, reason in choose(tallies, groups, count, by_image is not None):
        try:
            pair = draw_pair(dataset, tally.index, None if by_image is None else by_image[tally.index])
        except DataError as error:
            logger.warning("picture passed over: %s", error)
            continue
        caption = "" if by_image is None else _caption(store, tally)
        image_id = store.image_ids[tally.index].decode()
        pictures.append(Picture(image_id, reason, caption, *(_data_uri(one) for one in pair)))
    return pictures, threshold


def draw_pair(
    dataset: Any,
    index: int,
    predictions: Detections | None,
    metadata: Metadata | None = None,
    *,
    largest_side: int = _LARGEST_SIDE,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws the truth and, if given, the predictions (normalised boxes, perhaps masks) of an image.

    Args:
        dataset: records by index.
        index: of the record.
        predictions: for this image.
        metadata: for the visualizer; None takes the names and the hierarchy of the dataset's store.
        largest_side: larger pictures are shrunk to so many pixels.

    Returns:
        Two (H, W, 3) uint8 RGB pictures; the second is None without predictions.

    Raises:
        DataError: the image cannot be read, or a mask is malformed or does not fit it.
    """
    if metadata is None:
        metadata = labels_metadata(dataset.store.class_names, dataset.store.hierarchy)
    record = dataset[index]
    pixels = read_image(record["file_name"], "RGB", image_id=record["image_id"])
    objects = [] if predictions is None else _merged(predictions, pixels.shape, record["image_id"])
    room = room_for(max(len(record.get("annotations", ())), len(objects)), _SMALLEST_SIDE)

    def canvas() -> MultiLabelVisualizer:
        return MultiLabelVisualizer(pixels, metadata, min_size=room, max_size=largest_side)

    drawn_truth = canvas().draw_dataset_dict(record).get_image()
    return drawn_truth, None if predictions is None else canvas().draw_predictions(objects).get_image()


def _merged(predictions: Detections, shape: tuple[int, ...], image_id: object) -> list[DrawnObject]:
    height, width = shape[:2]
    boxes = predictions.box * np.array([width, height, width, height])
    masks = predictions.bitmaps() if isinstance(predictions, MaskedDetections) else None
    for mask in masks or ():
        if mask is not None and mask.shape != (height, width):
            raise DataError(
                f"image {image_id!r}: masks are of {mask.shape} pixels (height, width), the file has "
                f"{(height, width)}; is it another image than the one that was annotated?"
            )
    return merge_predictions(boxes, predictions.cls, predictions.score, masks=masks)


def default_threshold(num_labels: int, detections: Detections | None) -> float:
    """At most 0.5; less if so few predictions reach it that the pictures would be nearly empty.

    It goes down until as many predictions remain as there are annotated labels (`num_labels`), no further.
    """
    if detections is None or not len(detections) or not num_labels:
        return 0.5
    place = len(detections) - min(num_labels, len(detections))
    return float(min(0.5, np.partition(detections.score, place)[place]))


def _caption(store: AnnotationStore, tally: Tally) -> str:
    parts = [f"{tally.found} of {tally.labels} labels found"]
    if tally.wrong:
        parts.append(f"{tally.wrong} wrong prediction{'s' if tally.wrong > 1 else ''}")
    text = ", ".join(parts) + "."
    if tally.missed_classes:
        text += f" Missed: {_names(store, tally.missed_classes)}."
    return text


def _names(store: AnnotationStore, classes: Sequence[int], most: int = 6) -> str:
    counts = Counter(classes)
    words = [store.class_names[label] + (f" × {n}" if n > 1 else "") for label, n in counts.items()]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _data_uri(pixels: np.ndarray | None) -> str:
    if pixels is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
