"""Boxes and labels of the Open Images metric as arrays; evaluation files <-> these arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from longtail_det2.data.open_images_csv import (
    csv_issues,
    index_images,
    read_boxes,
    read_image_labels,
    read_predictions,
)
from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.io import atomic_writer

PREDICTION_COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")
"""Columns of the challenge's prediction files; coordinates are normalised by the image's width and height."""
_ROWS_PER_WRITE = 1 << 16


@dataclass(frozen=True)
class GroundTruth:
    """G annotated boxes and L verified image-level labels, of K classes.

    Attributes:
        image: (G,) integer image index >= 0 of each box.
        cls: (G,) integer class in [0, K).
        box: (G, 4) float XYXY.
        group_of: (G,) bool, True for one box around a group of objects.
        label_image: (L,) integer image index of each image-level label.
        label_cls: (L,) integer class in [0, K).
        label_present: (L,) bool, True for "verified present", False for "verified absent".
    """

    image: np.ndarray
    cls: np.ndarray
    box: np.ndarray
    group_of: np.ndarray
    label_image: np.ndarray
    label_cls: np.ndarray
    label_present: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detections:
    """D scored boxes, in any order.

    Attributes:
        image: (D,) integer image index as in the ground truth; -1 or any other index without annotation is
            never read.
        cls: (D,) integer class in [0, K).
        score: (D,) float, higher is more certain.
        box: (D, 4) float XYXY in the unit of the ground truth.
    """

    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    box: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def read_ground_truth(
    boxes: str | Path,
    image_labels: str | Path | None,
    class_ids: Sequence[str],
    on_unknown_label: Literal["error", "skip"] = "error",
) -> tuple[GroundTruth, list[str], int]:
    """Read a box CSV and a human image-label CSV, as released (not expanded) or expanded beforehand.

    Returns:
        The ground truth; the image ids in sorted order, which its image indices refer to; the number of rows
        skipped for their label.

    Raises:
        DataError: a missing file or column, a malformed cell, an unknown label, with file and line.
    """
    issues = csv_issues(on_unknown_label)
    of_box, cls, box, flags = read_boxes([boxes], class_ids, issues, within=False)
    label_files = [] if image_labels is None else [image_labels]
    of_label, label_cls, present = read_image_labels(label_files, class_ids, issues)
    issues.raise_errors()
    ids, (image, label_image) = index_images(of_box, of_label)
    group_of = (flags & np.uint8(ObjectFlag.GROUP_OF)) != 0
    truth = GroundTruth(image, cls, box, group_of, label_image, label_cls, present)
    return truth, [one.decode() for one in ids.tolist()], issues.count("unknown_label")


def read_detections(
    path: str | Path,
    class_ids: Sequence[str],
    image_ids: Sequence[str],
    on_unknown_label: Literal["error", "skip"] = "error",
) -> tuple[Detections, dict[str, int]]:
    """Read predictions in the challenge's CSV form (`PREDICTION_COLUMNS`).

    Returns:
        The detections with indices into `image_ids` and `class_ids`; counts of the rows left out
        ("unknown_label", "unknown_image": the metric never reads them).

    Raises:
        DataError: a missing file or column, a malformed cell, an unknown label, with file and line.
    """
    issues = csv_issues(on_unknown_label)
    columns, others = read_predictions(path, class_ids, image_ids, issues)
    issues.raise_errors()
    return Detections(**columns), {"unknown_label": issues.count("unknown_label"), "unknown_image": others}


def write_detections(
    path: str | Path, detections: Detections, class_ids: Sequence[str], image_ids: Sequence[str]
) -> None:
    """Write detections in the challenge's CSV form; `read_detections` reads it.

    Numbers are written with as many digits as their type needs to be recovered exactly. The file appears
    under its name only when it is complete.

    Args:
        path: file to write; its folder must exist.
        detections: boxes XYXY normalised to [0, 1].
        class_ids: name of each class index.
        image_ids: name of each image index.
    """
    images, labels = pa.array(image_ids, pa.string()), pa.array(class_ids, pa.string())
    options = pyarrow.csv.WriteOptions(include_header=False)
    with atomic_writer(path, "wb") as stream:
        stream.write((",".join(PREDICTION_COLUMNS) + "\n").encode())
        for start in range(0, len(detections), _ROWS_PER_WRITE):
            rows = slice(start, start + _ROWS_PER_WRITE)
            x0, y0, x1, y1 = (np.ascontiguousarray(detections.box[rows, i]) for i in range(4))
            columns = [
                images.take(pa.array(detections.image[rows].astype(np.int64))),
                labels.take(pa.array(detections.cls[rows].astype(np.int64))),
                *(pa.array(column) for column in (detections.score[rows], x0, x1, y0, y1)),
            ]
            pyarrow.csv.write_csv(pa.table(columns, names=list(PREDICTION_COLUMNS)), stream, options)
