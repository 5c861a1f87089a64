"""Files of the LVIS metric: the detections in LVIS's result form, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import longtail_det2
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.lvis_spill import SpilledDetections
from longtail_det2.evaluation.model_outputs import class_facts, fractions, json_id, number_or_null
from longtail_det2.utils.io import atomic_writer


def write_instances(
    path: Path, found: SpilledDetections, image_ids: Sequence[str], class_ids: Sequence[str]
) -> None:
    """Writes all detections, image by image; only one image's are in memory at a time.

    Args:
        path: JSON file, which appears when it is complete.
        found: with masks if they are to be written.
        image_ids: id of each image position.
        class_ids: id of each class.
    """
    classes = [json.dumps(json_id(name)) for name in class_ids]
    separator = ""
    with atomic_writer(path) as stream:
        stream.write("[")
        seen: list[int] = found.seen.tolist()
        offsets: list[int] = found.offsets.tolist()
        for image, first, last in zip(seen, offsets[:-1], offsets[1:], strict=True):
            rows = np.arange(first, last)
            name = json.dumps(json_id(image_ids[image]))
            box = found.box[first:last].astype(np.float64)
            box[:, 2:] -= box[:, :2]
            masks = found.masks(rows) if found.has_masks else [None] * len(rows)
            columns = (found.cls[rows].tolist(), box.tolist(), found.score[rows].tolist(), masks)
            for cls, (x, y, w, h), score, mask in zip(*columns, strict=True):
                # Nine digits give single precision back.
                stream.write(
                    f'{separator}{{"image_id": {name}, "category_id": {classes[cls]}, "bbox": '
                    f'[{x:.9g}, {y:.9g}, {w:.9g}, {h:.9g}], "score": {score:.9g}{_segmentation(mask)}}}'
                )
                separator = ",\n"
        stream.write("]\n")


def _segmentation(mask: Mapping[str, Any] | None) -> str:
    if mask is None:
        return ""
    content = {"size": mask["size"], "counts": mask["counts"].decode()}
    return f', "segmentation": {json.dumps(content)}'


def write_metrics(
    path: Path,
    store: AnnotationStore,
    results: Mapping[str, Mapping[str, float]],
    per_class: Mapping[str, np.ndarray],
    *,
    num_gt: np.ndarray,
    frequencies: Sequence[str] | None,
    train_counts: np.ndarray | None,
    options: Mapping[str, Any],
) -> None:
    """Writes the means, and the AP of each class, as fractions; numbers that do not exist are null.

    Args:
        path: JSON file, which appears when it is complete.
        store: with the ground truth.
        results: percentages by task and name.
        per_class: (K,) AP in [0, 1] of each class by task.
        num_gt: (K,) objects to find of each class.
        frequencies: "r", "c" or "f" of each class.
        train_counts: (K,) training images of each class.
        options: of the metric.
    """
    classes = [
        {
            **facts,
            "frequency": None if frequencies is None else frequencies[k],
            "num_gt": int(num_gt[k]),
            **{task: number_or_null(ap[k]) for task, ap in per_class.items()},
        }
        for k, facts in enumerate(class_facts(store, train_counts))
    ]
    document = {
        "metric": "LVIS",
        "unit": "fractions in [0, 1]",
        "longtail_det2": longtail_det2.__version__,
        "num_images": len(store),
        "options": dict(options),
        "summary": fractions(results),
        "classes": classes,
    }
    with atomic_writer(path) as stream:
        json.dump(document, stream, indent=1, allow_nan=False)
        stream.write("\n")
