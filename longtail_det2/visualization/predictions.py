"""Files of predictions for a store: the challenge's CSV form is read, COCO's JSON form read and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.coco_results import read_coco_results
from longtail_det2.evaluation.openimages_io import Detections, read_detections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer

from .multi_label_visualizer import read_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions(Detections):
    """Detections of a file, with normalised boxes, and with masks if there are any.

    Attributes:
        rle: (D,) masks of their image's size, None without one; decoded when they are drawn.
        entry: (D,) place of each detection in the file.
        source: the file.
    """

    rle: np.ndarray
    entry: np.ndarray
    source: str

    def of_image(self, image: int) -> Predictions:
        """Return the detections of an image; possibly none. Detections must be in order of images."""
        return self._rows(slice(*np.searchsorted(self.image, (image, image + 1))))

    def above(self, score_threshold: float) -> Predictions:
        """Return the detections with at least this score."""
        return self._rows(self.score >= score_threshold)

    def _rows(self, rows: Any) -> Predictions:
        columns = {name: one[rows] for name, one in vars(self).items() if isinstance(one, np.ndarray)}
        return replace(self, **columns)

    def mask_of(self, row: int) -> np.ndarray | None:
        """Decode the mask of a row to (height, width) bool.

        Raises:
            DataError: a damaged mask, with file and entry.
        """
        rle = self.rle[row]
        try:
            return None if rle is None else read_mask(rle, *rle["size"])
        except ValueError as error:
            raise DataError(f"{self.source}: entry {self.entry[row]} has a segmentation {error}") from None


def default_threshold(num_labels: int, detections: Detections) -> float:
    """Return a score to draw from: 0.5, or less until as many predictions reach it as there are labels."""
    if not len(detections) or not num_labels:
        return 0.5
    place = len(detections) - min(num_labels, len(detections))
    return float(min(0.5, np.partition(detections.score, place)[place]))


def read_predictions(path: str | Path, store: AnnotationStore) -> Predictions:
    """Read predictions for the images of a store, sorted by image.

    Args:
        path: `.csv` with ImageID, LabelName, Score, XMin, XMax, YMin, YMax (normalised), or `.json` as
            Detectron2's COCO evaluator writes it: a list of {"image_id", "category_id", "bbox", "score"} with
            bbox XYWH in pixels, and perhaps "segmentation", COCO's RLE.
        store: gives the order of images and classes; its class ids are the labels, as text. Predictions for
            other images are left out, with a warning.

    Raises:
        DataError: the file is unreadable or malformed, names an unknown class, or has a mask that is not of
            its image's size. (Whether a mask's counts are sound is found when it is drawn.)
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        boxes, rle = read_coco_results(path, store)
        unknown = np.count_nonzero(boxes.image < 0)
        # The last row, at -1, is that of other images.
        sides = np.vstack([store.image_sizes[:, [1, 0, 1, 0]].clip(1), np.ones(4)])
        boxes = replace(boxes, box=boxes.box / sides[boxes.image])
    else:
        image_ids = [name.decode() for name in store.image_ids.tolist()]
        boxes, left_out = read_detections(path, store.class_ids, image_ids)
        unknown, rle = left_out["unknown_image"], np.full(len(boxes), None)
    if unknown:
        logger.warning("%s: %d predictions are of images that are not in %s", path, unknown, store.path)
    found = Predictions(**vars(boxes), rle=rle, entry=np.arange(len(boxes)), source=str(path))
    order = np.argsort(found.image, kind="stable")
    return found._rows(order[found.image[order] >= 0])


def coco_results(
    image_id: str, instances: Instances, class_ids: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the predictions of one image as COCO results, with the name of the class beside its id.

    Args:
        image_id: of the image.
        instances: n predictions on the CPU; masks become compressed RLE.
        class_ids: K identifiers.
        names: K display names.
    """
    rows = instances_to_coco_json(instances, image_id)
    for row in rows:
        index = row["category_id"]
        class_id = str(class_ids[index])
        row.update(category_id=int(class_id) if class_id.isdecimal() else class_id, category=names[index])
    return rows


def write_predictions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write COCO results (see `coco_results`), one per line; the file appears when it is complete.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as stream:
            stream.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
