#!/usr/bin/env python3
"""Speed and memory of the metrics on synthetic data: CPU seconds (all threads) beside their targets.

openimages: 5,000 images x 500 classes x 100 detections per image; 20 boxes and 30 verified classes per image.
Three CSVs are read and evaluated, as given and with truth and predictions expanded.
lvis, the LVIS metric and fixed AP: 2,000 images x 1,203 classes x 300 detections per image; 12 boxes of about
4 classes, 8 classes verified absent, and in one image in four a class that is not exhaustive. Boxes only. The
package `lvis`, if it is installed, judges the file that the evaluator wrote.
Class frequencies fall as 1 / rank; a third of the detections are near a box of the truth, the others
anywhere.
"""

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import child, make_parser, peak_gb, row

SIDE = 640
"""Of the images of `lvis`, in pixels."""


class Size(NamedTuple):
    """How much there is, in an image but for `images` and `classes`."""

    images: int
    classes: int
    detections: int
    boxes: int
    present: int
    """Classes verified present, of which the boxes are."""
    verified: int
    stray: float
    """Share of the detections that are of any class, verified or not."""


SIZES = {"openimages": Size(5000, 500, 100, 20, 15, 30, 0), "lvis": Size(2000, 1203, 300, 12, 4, 12, 1 / 3)}
CLASS_IDS = [f"/m/{i:05d}" for i in range(SIZES["openimages"].classes)]
"""Of `openimages`."""


def random_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """(*shape, 4) corners in the unit square, sides from 1/80 to 1/2."""
    size = 40 ** rng.random((*shape, 2)) / 80
    corner = rng.random((*shape, 2)) * (1 - size)
    return np.concatenate([corner, corner + size], axis=-1)


def make_arrays(size: Size) -> dict[str, np.ndarray]:
    """Truth and detections; the first axis is the image."""
    rng = np.random.default_rng(0)
    # The largest of logits with Gumbel noise are a draw without replacement.
    noisy = rng.gumbel(size=(size.images, size.classes)) - np.log(np.arange(1, size.classes + 1))
    verified = np.argsort(-noisy, axis=1)[:, : size.verified]
    cls = np.take_along_axis(verified, rng.integers(0, size.present, (size.images, size.boxes)), axis=1)
    box = random_boxes(rng, size.images, size.boxes)
    many = size.images, size.detections
    source, near, stray = rng.integers(0, size.boxes, many), rng.random(many) < 1 / 3, rng.random(many)
    det_cls = np.take_along_axis(verified, rng.integers(0, size.verified, many), axis=1)
    det_cls = np.where(stray < size.stray, rng.integers(0, size.classes, many), det_cls)
    det_cls = np.where(near, np.take_along_axis(cls, source, axis=1), det_cls)
    moved = np.take_along_axis(box, source[..., None], axis=1) + rng.normal(0, 0.01, (*many, 4))
    det_box = np.where(near[..., None], moved, random_boxes(rng, *many))
    det_box[..., 2:] = np.maximum(det_box[..., 2:], det_box[..., :2] + 1 / SIDE)
    truth = {"verified": verified, "cls": cls, "box": box, "chance": rng.random(cls.shape)}
    return {**truth, "det_cls": det_cls, "det_box": det_box, "det_score": rng.random(many)}


def make_openimages(folder: Path, size: Size) -> None:
    """Write boxes.csv, labels.csv and predictions.csv."""
    import pyarrow as pa
    import pyarrow.csv

    from longtail_det2.evaluation.openimages_io import Detections, write_detections

    arrays, image_ids = make_arrays(size), [f"{i:016x}" for i in range(size.images)]

    def write(name: str, cls: np.ndarray, **columns: np.ndarray) -> None:
        image = np.repeat(np.arange(size.images), cls.shape[1])
        names = {"ImageID": pa.array(image_ids).take(pa.array(image))}
        names["LabelName"] = pa.array(CLASS_IDS).take(pa.array(cls.ravel()))
        pyarrow.csv.write_csv(pa.table({**names, **columns}), folder / name)

    edges = dict(zip(("XMin", "YMin", "XMax", "YMax"), arrays["box"].reshape(-1, 4).round(6).T, strict=True))
    write("boxes.csv", arrays["cls"], **edges, IsGroupOf=(arrays["chance"] < 0.06).ravel().astype(np.int8))
    present = np.tile(np.arange(size.verified) < size.present, size.images).astype(np.int8)
    write("labels.csv", arrays["verified"], Confidence=present)
    order = np.random.default_rng(1).permutation(size.images * size.detections)
    cls, score, box = (arrays[f"det_{name}"] for name in ("cls", "score", "box"))
    values = cls.ravel(), score.ravel().round(7), box.reshape(-1, 4).round(6)
    found = Detections(order // size.detections, *(one[order] for one in values))
    write_detections(folder / "predictions.csv", found, CLASS_IDS, image_ids)


def evaluate_openimages(folder: Path, expand: bool) -> dict[str, Any]:
    """Read and evaluate the files."""
    from longtail_det2.data.hierarchy import LabelHierarchy
    from longtail_det2.evaluation.openimages_io import read_detections, read_ground_truth
    from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth

    parents = {name: [CLASS_IDS[i // 8]] for i, name in enumerate(CLASS_IDS) if i >= 8}
    hierarchy = LabelHierarchy.from_json(parents, CLASS_IDS) if expand else None
    imports = time.process_time()
    truth, image_ids, _ = read_ground_truth(folder / "boxes.csv", folder / "labels.csv", CLASS_IDS)
    detections, _ = read_detections(folder / "predictions.csv", CLASS_IDS, image_ids)
    reading = time.process_time() - imports
    truth = truth if hierarchy is None else expand_ground_truth(truth, hierarchy)
    result = evaluate_detections(truth, detections, len(CLASS_IDS), prediction_hierarchy=hierarchy)
    cpu = time.process_time() - imports
    return {"AP": 100 * result.mean_ap, "imports": imports, "reading": reading, "cpu": cpu}


def make_lvis(folder: Path, size: Size) -> None:
    """Write the truth as LVIS's file and as an annotation store, and the detections as arrays."""
    from longtail_det2.data.datasets.coco import prepare_coco

    arrays = make_arrays(size)
    cls, absent = arrays["cls"] + 1, arrays["verified"][:, size.present :] + 1
    partly = np.where(arrays["chance"][:, :1] < 0.25, cls[:, :1], 0)
    low, high = SIDE * arrays["box"][..., :2], SIDE * arrays["box"][..., 2:]
    xywh = np.concatenate([low, high - low], axis=-1).reshape(-1, 4).tolist()
    images = [
        {"id": 10**8 + i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE}
        | {
            "neg_category_ids": absent[i].tolist(),
            "not_exhaustive_category_ids": partly[i][partly[i] > 0].tolist(),
        }
        for i in range(size.images)
    ]
    annotations = [
        {
            "id": n + 1,
            "image_id": images[n // size.boxes]["id"],
            "category_id": k,
            "bbox": one,
            "area": one[2] * one[3],
        }
        for n, (k, one) in enumerate(zip(cls.ravel().tolist(), xywh, strict=True))
    ]
    categories = [
        {"id": k + 1, "name": f"class {k}", "frequency": "fcr"[3 * k // size.classes]}
        for k in range(size.classes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    prepare_coco(folder / "truth.json", None, folder / "store")
    np.savez(folder / "found.npz", cls=arrays["det_cls"], box=arrays["det_box"], score=arrays["det_score"])


def evaluate_lvis(folder: Path) -> dict[str, Any]:
    """Give the detections to the evaluator."""
    import torch
    from detectron2.structures import Boxes, Instances

    from longtail_det2.evaluation.coco_metric import LVISMetric
    from longtail_det2.evaluation.evaluator import StoreEvaluator

    imports = time.process_time()
    evaluator = StoreEvaluator(folder / "store", [LVISMetric()], output_dir=folder / "out")
    evaluator.reset()
    with np.load(folder / "found.npz") as file:
        box, score, cls = (torch.from_numpy(file[name]) for name in ("box", "score", "cls"))
    cpu = 0.0
    for image in range(len(box)):
        boxes, scores = Boxes(box[image].float() * SIDE), score[image].float()
        found = Instances((SIDE, SIDE), pred_boxes=boxes, scores=scores, pred_classes=cls[image])
        start = time.process_time()
        evaluator.process([{"image_id": str(10**8 + image)}], [{"instances": found}])
        cpu += time.process_time() - start
    start = time.process_time()
    results = evaluator.evaluate()
    cpu += time.process_time() - start
    return {"AP": results["lvis_bbox"]["AP"], "imports": imports, "cpu": cpu}


def evaluate_by_package_lvis(folder: Path) -> dict[str, Any]:
    """Give the file that the evaluator wrote to the package `lvis`."""
    setattr(np, "float", float)  # noqa: B010 - its release needs what NumPy has dropped
    import lvis

    imports = time.process_time()
    truth = lvis.LVIS(str(folder / "truth.json"))
    found = lvis.LVISResults(truth, str(folder / "out/coco_instances_results.json"))
    evaluation = lvis.LVISEval(truth, found, "bbox")
    evaluation.run()
    return {"AP": 100 * evaluation.results["AP"], "imports": imports, "cpu": time.process_time() - imports}


def main() -> int:
    """Run the benchmark; 1 if a target was missed."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--images", type=int, metavar="N", help="default: as above, which the targets are for"
    )
    args = parser.parse_args()
    size, met = SIZES[args.data], True
    size = size._replace(images=args.images or size.images)
    steps: dict[str, tuple[Callable[[Path], dict[str, Any]], float | None, float | None]]
    if args.data == "openimages":
        make = make_openimages
        steps = {
            "as given": (partial(evaluate_openimages, expand=False), 8, 1),
            "truth and predictions expanded": (partial(evaluate_openimages, expand=True), 8, 1),
        }
    else:
        make = make_lvis
        steps = {"longtail_det2": (evaluate_lvis, 13.8, 1.4)}
        if importlib.util.find_spec("lvis"):
            steps["package lvis (no fixed AP)"] = (evaluate_by_package_lvis, None, None)
    if args.step:
        print(json.dumps({**steps[args.step][0](args.folder), "peak": peak_gb()}))
        return 0
    print(f"{size.images} images x {size.classes} classes x {size.detections} detections")
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), size)
        for step, (_, seconds, memory) in steps.items():
            seen = child(step, Path(name))
            print(step)
            row("AP", seen["AP"], "")
            row("imports", seen["imports"], "CPU-s")
            if "reading" in seen:
                row("reading the CSVs", seen["reading"], "CPU-s")
            met &= row("reading and metric", seen["cpu"], "CPU-s", seconds)
            met &= row("peak resident memory", seen["peak"], "GB", memory)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
