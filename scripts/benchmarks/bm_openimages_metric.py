#!/usr/bin/env python3
"""Speed and memory of the Open Images metric: 5,000 images x 500 classes x 100 detections an image.

Synthetic, seeded: 20 boxes and 30 different verified classes an image, class frequencies falling as 1 / rank,
a third of the detections near a box of the truth, the others anywhere. Writes the three CSVs, reads and
evaluates them in a fresh process, and prints CPU seconds (all threads) and peak resident memory beside the
targets.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.evaluation.openimages_io import (
    Detections,
    read_detections,
    read_ground_truth,
    write_detections,
)
from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth

TARGET_CPU_SECONDS = 8.0
TARGET_PEAK_GB = 1.0


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY boxes in the unit square, sides from 0.05 to 0.5."""
    size = rng.uniform(0.05, 0.5, (count, 2))
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (1.0 - size)
    return np.concatenate([corner, corner + size], axis=1).round(6)


def write_annotations(
    path: Path, image_ids: list[str], class_ids: list[str], columns: dict[str, np.ndarray]
) -> None:
    """One CSV of annotations; `columns` has "image" and "cls" indices and the other columns by name."""
    table = {
        "ImageID": pa.array(image_ids).take(pa.array(columns.pop("image"))),
        "LabelName": pa.array(class_ids).take(pa.array(columns.pop("cls"))),
    }
    pyarrow.csv.write_csv(
        pa.table(table | {name: pa.array(column) for name, column in columns.items()}), path
    )


def make_files(folder: Path, images: int, classes: int, detections: int, seed: int) -> None:
    """Writes boxes.csv, labels.csv and predictions.csv."""
    rng = np.random.default_rng(seed)
    image_ids, class_ids = names(images, classes)
    frequency = 1.0 / np.arange(1, classes + 1)
    boxes, labels = 20, 30
    # The largest of logits with Gumbel noise are a draw without replacement.
    noisy = np.log(frequency) + rng.gumbel(size=(images, classes))
    verified = np.argsort(-noisy, axis=1)[:, :labels]
    truth_cls = np.take_along_axis(verified, rng.integers(0, labels // 2, (images, boxes)), axis=1).ravel()
    truth_box = random_boxes(rng, images * boxes)
    box = {name: truth_box[:, i] for name, i in (("XMin", 0), ("XMax", 2), ("YMin", 1), ("YMax", 3))}
    group_of = (rng.random(images * boxes) < 0.06).astype(np.int8)
    image_of_box = np.repeat(np.arange(images), boxes)
    write_annotations(
        folder / "boxes.csv",
        image_ids,
        class_ids,
        {"image": image_of_box, "cls": truth_cls, **box, "IsGroupOf": group_of},
    )
    confidence = np.repeat(np.arange(labels) < labels // 2, images).reshape(labels, images).T.astype(np.int8)
    write_annotations(
        folder / "labels.csv",
        image_ids,
        class_ids,
        {
            "image": np.repeat(np.arange(images), labels),
            "cls": verified.ravel(),
            "Confidence": confidence.ravel(),
        },
    )
    image = np.repeat(np.arange(images), detections)
    cls = np.take_along_axis(verified, rng.integers(0, labels, (images, detections)), axis=1).ravel()
    det_box = random_boxes(rng, images * detections)
    near = np.flatnonzero(rng.random(images * detections) < 1 / 3)
    source = image[near] * boxes + rng.integers(0, boxes, len(near))
    cls[near] = truth_cls[source]
    det_box[near] = (truth_box[source] + rng.normal(0.0, 0.01, (len(near), 4))).round(6)
    order = rng.permutation(len(image))
    score = rng.random(len(image)).round(7)
    write_detections(
        folder / "predictions.csv",
        Detections(image[order], cls[order], score[order], det_box[order]),
        class_ids,
        image_ids,
    )


def names(images: int, classes: int) -> tuple[list[str], list[str]]:
    """Image ids of 16 hexadecimal digits and class ids."""
    return [f"{i:016x}" for i in range(images)], [f"/m/{i:05d}" for i in range(classes)]


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    return time.process_time()


def peak_gb() -> float:
    """Peak resident memory of this process.

    Linux's own record is preferred: getrusage may answer with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(folder: Path, images: int, classes: int, expand: bool) -> bool:
    """Reads and evaluates the files, prints the table; whether the targets were met."""
    _, class_ids = names(images, classes)
    parents = {class_ids[i]: [class_ids[i // 8]] for i in range(8, classes)}
    hierarchy = LabelHierarchy.from_json(parents, class_ids)
    imports = cpu_seconds()
    baseline = peak_gb()
    truth, image_ids, _ = read_ground_truth(folder / "boxes.csv", folder / "labels.csv", class_ids)
    detections, _ = read_detections(folder / "predictions.csv", class_ids, image_ids)
    reading = cpu_seconds() - imports
    reading_peak = peak_gb()
    if expand:
        truth = expand_ground_truth(truth, hierarchy)
    prediction_hierarchy = hierarchy if expand else None
    result = evaluate_detections(truth, detections, classes, prediction_hierarchy=prediction_hierarchy)
    total = cpu_seconds() - imports
    labels, scored = len(truth.label_image), result.counts["detections"]
    print(f"  {len(truth)} boxes, {labels} image labels, {scored} detections")
    print(f"  mAP {result.mean_ap:.6f} over {int((result.num_gt > 0).sum())} classes")
    row = "  {:<34}{:>10.2f}{:>14}{:>12.3f}{:>12}".format
    print(f"  {'':<34}{'CPU-s':>10}{'target':>14}{'peak GB':>12}{'target':>12}")
    print(row("imports", imports, "", baseline, ""))
    print(row("reading the CSVs", reading, "", reading_peak, ""))
    print(row("metric, CSVs excluded", total - reading, f"<= {TARGET_CPU_SECONDS:g}", peak_gb(), "<= 1"))
    print(row("metric, CSVs included", total, f"<= {TARGET_CPU_SECONDS:g}", peak_gb(), "<= 1"))
    met = total <= TARGET_CPU_SECONDS and peak_gb() <= TARGET_PEAK_GB
    print(f"  targets (for the default size) {'met' if met else 'MISSED'}")
    return met


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 if a target was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--expand", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.folder is not None:
        return 0 if measure(args.folder, args.images, args.classes, args.expand) else 1
    status = 0
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), args.images, args.classes, args.detections, args.seed)
        for title, flags in (("as given", []), ("truth and predictions expanded", ["--expand"])):
            print(f"{args.images} images x {args.classes} classes x {args.detections} detections, {title}")
            sizes = ["--images", str(args.images), "--classes", str(args.classes), "--folder", name]
            sys.stdout.flush()
            status |= subprocess.run([sys.executable, __file__, *sizes, *flags], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
