"""Files of predictions, in the challenge's CSV form or in COCO's JSON form: read against a data set, written."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import Detections, read_detections, write_detections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import atomic_writer, read_json

from .multi_label_visualizer import read_mask

logger = logging.getLogger(__name__)


class TruthIndex(NamedTuple):
    """What predictions refer to: the images and classes of a data set, in order."""

    name: str  # for messages
    image_ids: Sequence[str]
    image_sizes: np.ndarray  # (n, 2) height, width
    class_ids: Sequence[str]  # as they stand in prediction files, as text
    num_labels: int  # annotated

    @classmethod
    def of_store(cls, store: AnnotationStore) -> TruthIndex:
        """Index an annotation store."""
        image_ids = [name.decode() for name in store.image_ids.tolist()]
        return cls(str(store.path), image_ids, store.image_sizes, store.class_ids, len(store.labels))

    @classmethod
    def of_dataset(cls, name: str, dataset: Any, metadata: Any) -> TruthIndex:
        """Index a registered data set: of a store, or any other with sizes in its records."""
        if isinstance(dataset, MultiLabelDataset):
            return cls.of_store(dataset.store)
        records = [dataset[index] for index in range(len(dataset))]
        ids = [str(index) for index in range(len(metadata.get("thing_classes") or ()))]
        for class_id, index in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items():
            ids[index] = str(class_id)
        try:
            sizes = np.array([(one["height"], one["width"]) for one in records], dtype=np.int32)
            image_ids = [str(one["image_id"]) for one in records]
        except KeyError as error:
            raise DataError(f"data set {name!r}: its records have no {error}") from None
        num_labels = sum(len(one.get("annotations", ())) for one in records)
        return cls(name, image_ids, sizes.reshape(-1, 2), ids, num_labels)


@dataclass(frozen=True)
class MaskedDetections(Detections):
    """Detections with the masks of a results file.

    Attributes:
        rle: (D,) masks of their image's size, None without one; decoded when they are drawn.
        entry: (D,) place of each detection in the file.
        source: the file.
    """

    rle: np.ndarray
    entry: np.ndarray
    source: str

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


class DetectionsByImage:
    """Looks detections up by image."""

    def __init__(self, detections: Detections, score_threshold: float = 0.0) -> None:
        """Keep the detections with at least `score_threshold`."""
        rows = np.flatnonzero(detections.score >= score_threshold)
        self._rows = rows[np.argsort(detections.image[rows], kind="stable")]
        self._images = detections.image[self._rows]
        self._all = detections

    def __getitem__(self, image: int) -> Detections:
        """Return the detections of an image, with their masks if they have any; possibly none."""
        rows = self._rows[slice(*np.searchsorted(self._images, (image, image + 1)))]
        columns = {name: one[rows] for name, one in vars(self._all).items() if isinstance(one, np.ndarray)}
        return replace(self._all, **columns)


def default_threshold(num_labels: int, detections: Detections) -> float:
    """Return a score to draw from: 0.5, or less until as many predictions reach it as there are labels."""
    if not len(detections) or not num_labels:
        return 0.5
    place = len(detections) - min(num_labels, len(detections))
    return float(min(0.5, np.partition(detections.score, place)[place]))


def read_predictions(path: str | Path, truth: AnnotationStore | TruthIndex) -> Detections:
    """Read predictions for the images of a store or data set.

    Args:
        path: `.csv` with ImageID, LabelName, Score, XMin, XMax, YMin, YMax (normalised), or `.json` as
            Detectron2's COCO evaluator writes it: a list of {"image_id", "category_id", "bbox", "score"} with
            bbox XYWH in pixels, and perhaps "segmentation", COCO's RLE.
        truth: gives the order of images and classes; its class ids are the labels, as text.

    Returns:
        Detections with normalised boxes, `MaskedDetections` if there are masks. Those of images that are not
        in the data set are left out, with a warning.

    Raises:
        DataError: the file is unreadable or malformed, names an unknown class, or has a mask that is not of
            its image's size. (Whether a mask's counts are sound is found when it is drawn.)
    """
    path = Path(path)
    index = TruthIndex.of_store(truth) if isinstance(truth, AnnotationStore) else truth
    if path.suffix.lower() == ".json":
        detections, unknown = _read_json(path, index)
    else:
        detections, left_out = read_detections(path, index.class_ids, index.image_ids)
        unknown = left_out["unknown_image"]
    if unknown:
        logger.warning("%s: %d predictions are of images that are not in %s", path, unknown, index.name)
    return detections


def _read_json(path: Path, index: TruthIndex) -> tuple[Detections, int]:
    """Return the detections, and how many are of other images."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of results, got {type(rows).__name__}")
    image_of = {name: place for place, name in enumerate(index.image_ids)}
    class_of = {name: place for place, name in enumerate(index.class_ids)}
    found = []
    for number, row in enumerate(rows):
        try:
            numbers = [float(value) for value in (row["score"], *row["bbox"])]
            image, label = image_of.get(str(row["image_id"])), str(row["category_id"])
            if len(numbers) != 5 or not all(map(math.isfinite, numbers)):
                raise ValueError("five finite numbers are needed")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: entry {number} is no COCO result ({error!r}); expected image_id, category_id, bbox "
                "(x, y, width, height) and score"
            ) from None
        if label not in class_of:
            raise DataError(f"{path}: entry {number}: category_id {label!r} is no class of {index.name}")
        if image is None:
            continue
        rle, size = row.get("segmentation"), index.image_sizes[image].tolist()
        if rle is not None and (not isinstance(rle, dict) or rle.get("size") != size):
            form = f"RLE of its image's size {size}"
            raise DataError(f"{path}: entry {number} has a segmentation that is not {form}")
        found.append((image, class_of[label], number, rle, *numbers))
    image, cls, entry, rle, *numbers = np.array(found, dtype=object).reshape(-1, 9).T
    score, *box = np.array(numbers, dtype=np.float64)
    sizes = index.image_sizes[image.astype(np.int64)].reshape(-1, 2)
    columns = image.astype(np.int64), cls.astype(np.int32), score, _normalized(np.stack(box, axis=1), sizes)
    if any(one is not None for one in rle):
        return MaskedDetections(*columns, rle, entry, str(path)), len(rows) - len(found)
    return Detections(*columns), len(rows) - len(found)


def _normalized(box: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Turn boxes (n, 4) XYWH in pixels of images of (n, 2) height, width into XYXY shares of the image."""
    corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)
    return corners / np.maximum(sizes, 1)[:, [1, 0, 1, 0]]


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


def write_predictions(
    path: Path, rows: Sequence[dict[str, Any]], sizes: Mapping[str, tuple[int, int]], class_ids: Sequence[str]
) -> None:
    """Write predictions of any number of images; the file appears when it is complete.

    Args:
        path: `.csv` for the form of the Open Images challenge (boxes as shares of the image, no masks),
            `.json` for COCO results.
        rows: as `coco_results` returns them.
        sizes: (height, width) of each image by id.
        class_ids: K identifiers.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            images, classes = ({str(one): k for k, one in enumerate(names)} for names in (sizes, class_ids))
            image = np.array([images[row["image_id"]] for row in rows], dtype=np.int64)
            cls = np.array([classes[str(row["category_id"])] for row in rows], dtype=np.int32)
            score = np.array([row["score"] for row in rows], dtype=np.float64)
            box = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
            box = _normalized(box, np.array(list(sizes.values())).reshape(-1, 2)[image]).clip(0, 1)
            found = Detections(image, cls, score, box.astype(np.float32))
            write_detections(path, found, class_ids, list(sizes))
        else:
            with atomic_writer(path) as stream:
                lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
                stream.write(f"[\n{lines}\n]\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
