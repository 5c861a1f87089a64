#!/usr/bin/env python3
"""Speed and memory of the Open Images metric: 5,000 images x 500 classes x 100 detections per image.

Synthetic, seeded: 20 boxes and 30 different verified classes per image, class frequencies as 1 / rank,
a third of the detections near a gt box, the others anywhere. Writes the three CSVs, reads and evaluates them
in a fresh process, as given and with truth and predictions expanded, and prints CPU seconds (all threads) and
peak resident memory beside the targets, which are for the default size.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from common import child, peak_gb, row

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.evaluation.openimages_io import (
    Detections,
    read_detections,
    read_ground_truth,
    write_detections,
)
from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth

BOXES, LABELS = 20, 30
"""Per image."""


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY boxes in the unit square, sides from 0.05 to 0.5."""
    size = rng.uniform(0.05, 0.5, (count, 2))
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (1.0 - size)
    return np.concatenate([corner, corner + size], axis=1).round(6)


def class_names(classes: int) -> list[str]:
    """Ids of the classes."""
    return [f"/m/{i:05d}" for i in range(classes)]


def make_files(folder: Path, images: int, classes: int, detections: int, seed: int) -> None:
    """Write boxes.csv, labels.csv and predictions.csv."""
    rng = np.random.default_rng(seed)
    image_ids, class_ids = [f"{i:016x}" for i in range(images)], class_names(classes)

    def write(name: str, image: np.ndarray, cls: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        names = {"ImageID": pa.array(image_ids).take(pa.array(image))}
        names["LabelName"] = pa.array(class_ids).take(pa.array(cls))
        pyarrow.csv.write_csv(pa.table({**names, **columns}), folder / name)

    # The largest of logits with Gumbel noise are a draw without replacement.
    noisy = rng.gumbel(size=(images, classes)) - np.log(np.arange(1, classes + 1))
    verified = np.argsort(-noisy, axis=1)[:, :LABELS]
    truth_cls = np.take_along_axis(verified, rng.integers(0, LABELS // 2, (images, BOXES)), axis=1).ravel()
    truth_box = random_boxes(rng, images * BOXES)
    box = {name: truth_box[:, i] for name, i in (("XMin", 0), ("XMax", 2), ("YMin", 1), ("YMax", 3))}
    group_of = (rng.random(images * BOXES) < 0.06).astype(np.int8)
    write("boxes.csv", np.repeat(np.arange(images), BOXES), truth_cls, {**box, "IsGroupOf": group_of})
    confidence = np.tile(np.arange(LABELS) < LABELS // 2, images).astype(np.int8)
    write("labels.csv", np.repeat(np.arange(images), LABELS), verified.ravel(), {"Confidence": confidence})
    image = np.repeat(np.arange(images), detections)
    cls = np.take_along_axis(verified, rng.integers(0, LABELS, (images, detections)), axis=1).ravel()
    det_box = random_boxes(rng, images * detections)
    near = np.flatnonzero(rng.random(images * detections) < 1 / 3)
    source = image[near] * BOXES + rng.integers(0, BOXES, len(near))
    cls[near] = truth_cls[source]
    det_box[near] = (truth_box[source] + rng.normal(0.0, 0.01, (len(near), 4))).round(6)
    order = rng.permutation(len(image))
    found = Detections(image[order], cls[order], rng.random(len(image)).round(7), det_box[order])
    write_detections(folder / "predictions.csv", found, class_ids, image_ids)


def measure(folder: Path, classes: int, expand: bool) -> dict[str, Any]:
    """Child: read and evaluate the files."""
    class_ids = class_names(classes)
    hierarchy = LabelHierarchy.from_json(
        {class_ids[i]: [class_ids[i // 8]] for i in range(8, classes)}, class_ids
    )
    imports = time.process_time()
    truth, image_ids, _ = read_ground_truth(folder / "boxes.csv", folder / "labels.csv", class_ids)
    detections, _ = read_detections(folder / "predictions.csv", class_ids, image_ids)
    reading = time.process_time() - imports
    truth = expand_ground_truth(truth, hierarchy) if expand else truth
    tree = hierarchy if expand else None
    result = evaluate_detections(truth, detections, classes, prediction_hierarchy=tree)
    total = time.process_time() - imports
    found = {"mAP": result.mean_ap, "detections": result.counts["detections"], "boxes": len(truth)}
    return {"imports": imports, "reading": reading, "total": total, "peak": peak_gb(), **found}


def main() -> int:
    """Run the benchmark; 1 if a target was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--expand", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        print(json.dumps(measure(args.folder, args.classes, args.expand)))
        return 0
    met = True
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), args.images, args.classes, args.detections, seed=0)
        for title, flags in (("as given", ()), ("truth and predictions expanded", ("--expand",))):
            seen = child(__file__, "--classes", args.classes, "--folder", name, *flags)
            print(f"{args.images} images x {args.classes} classes x {args.detections} detections, {title}")
            print(f"  {seen['boxes']} boxes, {seen['detections']} detections, mAP {seen['mAP']:.6f}")
            row("imports", seen["imports"], "CPU-s")
            row("reading the CSVs", seen["reading"], "CPU-s")
            met &= row("reading and metric", seen["total"], "CPU-s", 8)
            met &= row("peak resident memory", seen["peak"], "GB", 1)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
