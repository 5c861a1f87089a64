#!/usr/bin/env python3
"""Speed and memory of the LVIS metric and fixed AP: 2,000 images x 1,203 classes x 300 detections per image.

Synthetic, seeded: 12 boxes of about 4 classes per image, 8 classes verified absent, one image in four with a
class that is not exhaustive, class frequencies falling as 1 / rank; a third of the detections near a box of
the truth, the others anywhere, two thirds of those of classes that somebody looked for. Boxes only. The
evaluator runs in a fresh process, and so does the package `lvis`, if it is installed, on the file that the
evaluator wrote; both print CPU seconds (all threads) and peak resident memory.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import child, peak_gb, row

SIDE = 640


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) corners in pixels, sides from 8 to 320."""
    size = 8 * 40 ** rng.random((count, 2))
    corner = rng.random((count, 2)) * (SIDE - size)
    return np.concatenate([corner, corner + size], axis=1)


def class_numbers(rng: np.random.Generator, classes: int, images: int, count: int) -> np.ndarray:
    """(images, count) different classes in each image; the largest of logits with Gumbel noise are a draw."""
    noisy = -np.log(np.arange(1, classes + 1)) + rng.gumbel(size=(images, classes))
    return np.argpartition(-noisy, count, axis=1)[:, :count]


def make_store(folder: Path, images: int, classes: int, seed: int) -> None:
    """Writes the ground truth as an annotation store, and as LVIS's file."""
    from longtail_det2.data.store import write_store

    rng = np.random.default_rng(seed)
    looked_for = class_numbers(rng, classes, images, 12)
    present, absent = looked_for[:, :4], looked_for[:, 4:]
    cls = np.take_along_axis(present, np.sort(rng.integers(0, 4, (images, 12))), axis=1)
    partly = np.where(rng.random(images) < 0.25, cls[:, 0], -1)
    box = random_boxes(rng, images * 12).astype(np.float32)
    labels = [np.append(absent[i], partly[i : i + 1][partly[i : i + 1] >= 0]) for i in range(images)]
    ends = np.cumsum([0, *(len(one) for one in labels)])
    names = [str(10**8 + i) for i in range(images)]  # ascend as texts, too
    columns = {
        "image_id": np.array(names),
        "file_name": np.array([f"{name}.jpg" for name in names]),
        "image_size": np.full((images, 2), SIDE),
        "object_offsets": np.arange(images + 1) * 12,
        "box": box / SIDE,
        "flags": np.zeros(images * 12, np.uint8),
        "label_offsets": np.arange(images * 12 + 1),
        "label": cls.ravel(),
        "image_label_offsets": ends,
        "image_label": np.concatenate(labels),
        "image_label_status": np.concatenate([[0] * 8 + [2] * (len(one) - 8) for one in labels]),
    }
    frequency = ["f" if k < classes // 3 else "c" if k < 2 * classes // 3 else "r" for k in range(classes)]
    ids = [str(k + 1) for k in range(classes)]
    write_store(folder / "store", columns, ids, frequency=frequency)
    xywh = np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], axis=1, dtype=np.float64)
    pairs = zip((cls.ravel() + 1).tolist(), xywh.tolist(), strict=True)
    content = {
        "images": [
            {
                "id": int(name),
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": (absent[i] + 1).tolist(),
                "not_exhaustive_category_ids": [int(partly[i]) + 1] if partly[i] >= 0 else [],
            }
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": n + 1, "image_id": 10**8 + n // 12, "category_id": k, "bbox": one, "area": one[2] * one[3]}
            for n, (k, one) in enumerate(pairs)
        ],
        "categories": [{"id": k + 1, "frequency": frequency[k]} for k in range(classes)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    np.savez(folder / "truth.npz", box=box, cls=cls, looked_for=looked_for)


def detections_of(rng: np.random.Generator, truth: Any, image: int, classes: int, count: int) -> Any:
    """One image's `Instances`."""
    import torch
    from detectron2.structures import Boxes, Instances

    box = random_boxes(rng, count)
    cls = rng.integers(0, classes, count)
    known = rng.random(count) < 2 / 3
    cls[known] = rng.choice(truth["looked_for"][image], int(known.sum()))
    near, source = rng.random(count) < 1 / 3, rng.integers(0, 12, count)
    moved = truth["box"][image * 12 + source] + rng.normal(0, 6, (count, 4))
    box[near], cls[near] = moved[near], truth["cls"][image, source[near]]
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
    found = Instances((SIDE, SIDE))
    found.pred_boxes = Boxes(torch.from_numpy(box).float())
    found.scores = torch.from_numpy(rng.random(count)).float()
    found.pred_classes = torch.from_numpy(cls)
    return found


def measure_own(args: argparse.Namespace) -> dict[str, Any]:
    """Child: the evaluator."""
    from longtail_det2.evaluation.coco_metric import LVISMetric
    from longtail_det2.evaluation.evaluator import StoreEvaluator

    with np.load(args.folder / "truth.npz") as file:
        truth = dict(file)
    rng, imports = np.random.default_rng(1), time.process_time()
    evaluator = StoreEvaluator(args.folder / "store", [LVISMetric()], output_dir=args.folder / "out")
    evaluator.reset()
    processing = 0.0
    for image in range(args.images):
        found = detections_of(rng, truth, image, args.classes, args.detections)
        start = time.process_time()
        evaluator.process([{"image_id": str(10**8 + image)}], [{"instances": found}])
        processing += time.process_time() - start
    start = time.process_time()
    results = evaluator.evaluate()
    total = processing + time.process_time() - start
    return {"imports": imports, "cpu": total, "peak": peak_gb(), "AP": results["lvis_bbox"]["AP"]}


def measure_lvis(args: argparse.Namespace) -> dict[str, Any]:
    """Child: the package `lvis` on the same detections."""
    setattr(np, "float", float)  # noqa: B010 - its release needs what NumPy has dropped
    import lvis

    imports = time.process_time()
    truth = lvis.LVIS(str(args.folder / "truth.json"))
    found = lvis.LVISResults(truth, str(args.folder / "out/coco_instances_results.json"))
    evaluation = lvis.LVISEval(truth, found, "bbox")
    evaluation.run()
    total = time.process_time() - imports
    return {"imports": imports, "cpu": total, "peak": peak_gb(), "AP": 100 * evaluation.results["AP"]}


def main() -> int:
    """Run the benchmark; 1 if a target was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=("own", "lvis"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps((measure_own if args.part == "own" else measure_lvis)(args)))
        return 0
    sizes = [f"--{name}={getattr(args, name)}" for name in ("images", "classes", "detections")]
    print(f"{args.images} images x {args.classes} classes x {args.detections} detections")
    met = True
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), args.images, args.classes, seed=0)
        for part in ("own", "lvis") if importlib.util.find_spec("lvis") else ("own",):
            targets = (13.8, 1.4) if part == "own" else (None, None)
            seen = child(__file__, *sizes, "--folder", name, "--part", part)
            print("longtail_det2" if part == "own" else "package lvis (no fixed AP)")
            row("AP", seen["AP"], "")
            row("imports", seen["imports"], "CPU-s")
            met &= row("evaluation, files read or written", seen["cpu"], "CPU-s", targets[0])
            met &= row("peak resident memory", seen["peak"], "GB", targets[1])
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
