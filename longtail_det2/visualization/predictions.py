"""Predictions from disk, in the challenge's CSV form or in COCO's JSON form, against a data set."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.openimages_io import Detections, read_detections
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json
from longtail_det2.visualization.mask_drawing import check_runs, read_segmentation

logger = logging.getLogger(__name__)

__all__ = ["MaskedDetections", "TruthIndex", "read_predictions", "select_rows"]


@dataclass(frozen=True)
class TruthIndex:
    """What predictions refer to: the images and classes of a data set, in order.

    Attributes:
        name: what messages call it.
        image_ids: n identifiers.
        image_sizes: (n, 2) (height, width).
        class_ids: K identifiers as they stand in prediction files, as text.
        class_names: K display names.
        hierarchy: of the classes, if known.
        num_labels: annotated labels.
    """

    name: str
    image_ids: Sequence[str]
    image_sizes: np.ndarray
    class_ids: Sequence[str]
    class_names: Sequence[str]
    hierarchy: LabelHierarchy | None
    num_labels: int

    @classmethod
    def of_store(cls, store: AnnotationStore) -> TruthIndex:
        """Of an annotation store."""
        return cls(
            str(store.path),
            [name.decode() for name in store.image_ids.tolist()],
            store.image_sizes,
            store.class_ids,
            store.class_names,
            store.hierarchy,
            len(store.labels),
        )

    @classmethod
    def of_dataset(cls, name: str, dataset: Any, metadata: Any) -> TruthIndex:
        """Of a registered data set: of a store, or any other with sizes in its records."""
        if isinstance(dataset, MultiLabelDataset):
            return cls.of_store(dataset.store)
        records = [dataset[index] for index in range(len(dataset))]
        names = list(metadata.get("thing_classes") or ())
        ids = [str(index) for index in range(len(names))]
        for class_id, index in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items():
            ids[index] = str(class_id)
        try:
            sizes = np.array([(one["height"], one["width"]) for one in records], dtype=np.int32)
            image_ids = [str(one["image_id"]) for one in records]
        except KeyError as error:
            raise DataError(f"data set {name!r}: its records have no {error}") from None
        num_labels = sum(len(one.get("annotations", ())) for one in records)
        return cls(name, image_ids, sizes.reshape(-1, 2), ids, names, None, num_labels)


@dataclass(frozen=True)
class MaskedDetections(Detections):
    """Detections with the masks that a results file has beside them.

    Attributes:
        runs: D masks as `longtail_det2.visualization.mask_drawing.check_runs` returns them, at the size of
            their image; None where an entry has none. They are decoded when they are drawn.
        entry: (D,) place of each detection in the file.
        source: the file.
    """

    runs: Sequence[dict[str, Any] | None]
    entry: np.ndarray
    source: str

    def bitmaps(self) -> list[np.ndarray | None]:
        """The masks as (height, width) bool.

        Raises:
            DataError: counts that are no run lengths of the image's size, with file and entry.
        """
        masks = []
        for runs, entry in zip(self.runs, self.entry.tolist(), strict=True):
            try:
                masks.append(None if runs is None else read_segmentation(runs, *runs["size"]))
            except ValueError as error:
                raise DataError(f"{self.source}: entry {entry} has a segmentation {error}") from None
        return masks


def select_rows(detections: Detections, rows: np.ndarray) -> Detections:
    """Some of the detections, with their masks if they have any.

    Args:
        detections: D of them.
        rows: integer places in [0, D).
    """
    every = detections
    chosen = Detections(every.image[rows], every.cls[rows], every.score[rows], every.box[rows])
    if not isinstance(every, MaskedDetections):
        return chosen
    runs = [every.runs[row] for row in rows.tolist()]
    return MaskedDetections(**vars(chosen), runs=runs, entry=every.entry[rows], source=every.source)


def read_predictions(path: str | Path, truth: AnnotationStore | TruthIndex) -> Detections:
    """Reads predictions for the images of a store or data set.

    Args:
        path: `.csv` with ImageID, LabelName, Score, XMin, XMax, YMin, YMax (normalised), or `.json` as
            Detectron2's COCO evaluator writes it: a list of {"image_id", "category_id", "bbox", "score"} with
            bbox XYWH in pixels, and perhaps "segmentation": {"size": [height, width], "counts": text}, COCO's
            compressed run lengths.
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
        unknown = left_out.get("unknown_image", 0)
    if unknown:
        logger.warning("%s: %d predictions are of images that are not in %s", path, unknown, index.name)
    return detections


def _read_json(path: Path, index: TruthIndex) -> tuple[Detections, int]:
    rows = _json_rows(path)
    image_of = {name: place for place, name in enumerate(index.image_ids)}
    class_of = {name: place for place, name in enumerate(index.class_ids)}
    images, classes, scores, boxes, runs = [], [], [], [], []
    for number, row in enumerate(rows):
        try:
            label = str(row["category_id"])
            image = image_of.get(str(row["image_id"]), -1)
            x, y, width, height = (float(value) for value in row["bbox"])
            score = float(row["score"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: entry {number} is no COCO result ({error!r}); expected image_id, category_id, bbox "
                "(x, y, width, height) and score"
            ) from None
        if not all(map(math.isfinite, (x, y, width, height, score))):
            raise DataError(f"{path}: entry {number} has a number that is not finite")
        if label not in class_of:
            raise DataError(f"{path}: entry {number}: category_id {label!r} is no class of {index.name}")
        images.append(image)
        classes.append(class_of[label])
        scores.append(score)
        boxes.append((x, y, x + width, y + height))
        runs.append(_read_runs(path, number, row, None if image < 0 else index.image_sizes[image].tolist()))
    image = np.array(images, dtype=np.int64)
    known = np.flatnonzero(image >= 0)
    height, width = index.image_sizes[image[known]].reshape(-1, 2).T.astype(np.float64)
    box = np.array(boxes, dtype=np.float64).reshape(-1, 4)[known]
    box /= np.maximum(np.stack([width, height, width, height], axis=1), 1)
    columns = image[known], np.array(classes, dtype=np.int32)[known], np.array(scores)[known], box
    masks = [runs[row] for row in known.tolist()]
    unknown = len(rows) - len(known)
    if any(one is not None for one in masks):
        return MaskedDetections(*columns, masks, known, str(path)), unknown
    return Detections(*columns), unknown


def _read_runs(path: Path, number: int, row: Any, size: Sequence[int] | None) -> dict[str, Any] | None:
    """The mask of an entry; None without one, or in an image that is not known (no size)."""
    value = row.get("segmentation")
    if value is None or size is None:
        return None
    try:
        return check_runs(value, *size)
    except ValueError as error:
        raise DataError(
            f"{path}: entry {number} has a segmentation {error}; expected COCO's compressed run lengths, "
            '{"size": [height, width], "counts": text}'
        ) from None


def _json_rows(path: Path) -> list[Any]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of results, got {type(rows).__name__}")
    return rows
