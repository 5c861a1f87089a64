"""Data sets in LVIS's form with detections, and what the package `lvis` 0.5.3 says about them.

Everything is drawn from `random.Random(seed).random()`, whose values do not change with Python's version.
Coordinates are whole pixels of images whose sides are powers of two, so that stores hold them exactly.

`python tests/evaluation/lvis_cases.py` writes the numbers of `lvis`, if it is installed, to
tests/golden/lvis/expected.json.
"""

import contextlib
import copy
import json
import logging
import random
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.structures import Boxes, Instances

from longtail_det2.evaluation.coco_metric import LVISMetric
from longtail_det2.evaluation.evaluator import StoreEvaluator

HEIGHT, WIDTH = 128, 256
TASKS = ("bbox", "segm")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lvis" / "expected.json"
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
CASES = {
    # name: (seed, images, classes, detections an image, share of detections with one of ten scores)
    "plain": (1, 24, 9, 25, 0.0),
    "ties": (2, 20, 6, 40, 0.7),
    "crowded": (3, 4, 5, 420, 0.3),
    "sparse": (4, 30, 40, 12, 0.1),
}
"""Data sets that golden values exist of."""


class Draw:
    """Whole numbers and choices from a stream that is the same everywhere."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, limit):
        return int(self.random() * limit)

    def box(self):
        """x, y, width, height inside the image, from small to large."""
        size = 4 * 4 ** (2.4 * self.random())
        width = max(2, min(WIDTH, int(size * (0.6 + 0.8 * self.random()))))
        height = max(2, min(HEIGHT, int(size * (0.6 + 0.8 * self.random()))))
        return [self.below(WIDTH - width + 1), self.below(HEIGHT - height + 1), width, height]


def runs_of(polygon):
    (runs,) = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)
    return runs


def polygon_of(box, kind):
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return corners if kind % 2 else [*corners[:4], x + w, y + h, x + w // 2, y + h]


def make_content(name):
    """An LVIS file's content; ids leave gaps, and image 10 comes before image 9 as text."""
    seed, images, classes, _, _ = CASES[name]
    draw = Draw(seed)
    entries, annotations = [], []
    for number in range(images):
        image = 3 * number + 4
        kinds = sorted({draw.below(classes) for _ in range(draw.below(6))})
        others = [k for k in range(classes) if k not in kinds]
        absent = sorted({others[draw.below(len(others))] for _ in range(draw.below(5))})
        partly = [k for k in kinds if draw.random() < 0.25]
        entries.append(
            {
                "id": image,
                "file_name": f"{image}.png",
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": [2 * k + 5 for k in absent],
                "not_exhaustive_category_ids": [2 * k + 5 for k in partly],
            }
        )
        taken = set()
        for k in kinds:
            for _ in range(1 + draw.below(4)):
                box = draw.box()
                if tuple(box) in taken:  # would be one object with two labels in a store
                    continue
                taken.add(tuple(box))
                polygon = polygon_of(box, draw.below(2))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": 2 * k + 5,
                        "bbox": box,
                        "area": float(coco_mask.area(runs_of(polygon))),
                        "segmentation": [polygon],
                    }
                )
    categories = [
        {"id": 2 * k + 5, "name": f"class {k}", "synset": f"c{k}.n.01", "frequency": "rcf"[k % 3]}
        for k in range(classes)
    ]
    return {"images": entries, "annotations": annotations, "categories": categories}


def make_results(name, content):
    """Detections near the objects and elsewhere, in LVIS's form, ids of the file."""
    seed, _, classes, count, tied = CASES[name]
    draw = Draw(seed + 1000)
    rows = []
    for image in content["images"]:
        objects = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        for _ in range(count):
            if objects and draw.random() < 0.4:
                source = objects[draw.below(len(objects))]
                x, y, w, h = source["bbox"]
                x, y = max(0, x + draw.below(5) - 2), max(0, y + draw.below(5) - 2)
                box = [x, y, min(max(2, w + draw.below(7) - 3), WIDTH - x), min(h, HEIGHT - y)]
                label = source["category_id"] if draw.random() < 0.8 else 2 * draw.below(classes) + 5
            else:
                box, label = draw.box(), 2 * draw.below(classes) + 5
            if draw.random() < 0.02:
                box[2] = 0  # of no area
            score = draw.random()
            score = int(10 * score) / 10 if draw.random() < tied else score
            polygon = polygon_of(box, draw.below(2))
            runs = runs_of(polygon)
            rows.append(
                {
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "score": float(np.float32(score)),
                    "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
                }
            )
    return rows


def best_of_each_class(rows, limit):
    """What the tool of fixed AP evaluates."""
    rows = sorted(rows, key=lambda row: -row["score"])
    seen, kept = {}, []
    for row in rows:
        seen[row["category_id"]] = seen.get(row["category_id"], 0) + 1
        if seen[row["category_id"]] <= limit:
            kept.append(row)
    return kept


def lvis_numbers(content, rows, task, max_detections=300):
    """Percentages by the package `lvis`, whose release needs an alias that NumPy has dropped."""
    with quiet_lvis() as lvis, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(content))
        ground = lvis.LVIS(str(path))
        rows = copy.deepcopy(rows)
        if task == "segm":
            for row in rows:
                del row["bbox"]  # else it takes the areas of boxes
        found = lvis.LVISResults(ground, rows, max_dets=max_detections)
        evaluation = lvis.LVISEval(ground, found, task)
        evaluation.run()
    return {name: 100 * float(evaluation.results[name]) for name in NAMES}


@contextlib.contextmanager
def quiet_lvis():
    handlers, level = logging.root.handlers[:], logging.root.level
    import lvis  # which sets up the root logger

    logging.root.handlers[:], logging.root.level = handlers, level
    logging.getLogger("lvis").setLevel(logging.ERROR)
    with patch.object(np, "float", float, create=True):
        yield lvis


def make_outputs(content, rows):
    """The detections as a model gives them, with masks if all rows have them: (inputs, outputs) by image."""
    categories = sorted(one["id"] for one in content["categories"])
    of_image = {one["id"]: [] for one in content["images"]}
    for row in rows:
        of_image[row["image_id"]].append(row)
    with_masks = all("segmentation" in row for row in rows)
    outputs = []
    for one in content["images"]:
        found, size = of_image[one["id"]], (one["height"], one["width"])
        instances = Instances(size)
        box = torch.tensor([row["bbox"] for row in found], dtype=torch.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], dim=1))
        instances.scores = torch.tensor([row["score"] for row in found], dtype=torch.float32)
        classes = [categories.index(row["category_id"]) for row in found]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        if with_masks:
            masks = [coco_mask.decode(row["segmentation"]) for row in found]
            instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
        outputs.append(({"image_id": str(one["id"])}, {"instances": instances}))
    return outputs


PARENTS = {2 * k + 5: 2 * (k % 2) + 5 for k in range(2, 6)}
"""The category above some categories of `make_content`."""
HIERARCHY = {f"class {k}": [f"class {k % 2}"] for k in range(2, 6)}
"""The same by name."""


def expanded(content):
    """The same as a flat LVIS file: objects and what is not exhaustive go up, what is absent goes down."""
    content = copy.deepcopy(content)
    for one in list(content["annotations"]):
        if one["category_id"] in PARENTS:
            above = {**one, "category_id": PARENTS[one["category_id"]], "id": len(content["annotations"]) + 1}
            content["annotations"].append(above)
    for image in content["images"]:
        partly, absent = (image.get(f"{kind}_category_ids", []) for kind in ("not_exhaustive", "neg"))
        partly += [PARENTS[k] for k in partly if k in PARENTS]
        absent += [below for below, above in PARENTS.items() if above in absent]
    return content


def make_evaluator(store, output_dir=None, train_counts=None, **options):
    """An evaluator with LVIS's metric; options are the metric's."""
    metric = LVISMetric(**{"tasks": TASKS, **options})
    return StoreEvaluator(store, [metric], output_dir=output_dir, train_counts=train_counts)


def evaluate(store, outputs, **options):
    """Results of LVIS's metric, three images at a time."""
    return feed(make_evaluator(store, **options), outputs).evaluate()


def feed(evaluator, outputs):
    evaluator.reset()
    for start in range(0, len(outputs), 3):
        evaluator.process(*zip(*outputs[start : start + 3], strict=True))
    return evaluator


def assert_equal(found, expected, tolerance=1e-6):
    """Of percentages; lvis says -1 (here times 100) where there is nothing to take a mean of."""
    for name, value in found.items():
        if expected[name] < 0:
            assert np.isnan(value), name
        else:
            assert abs(value - expected[name]) < tolerance, (name, value, expected[name])


def record():
    """What `lvis` says about every case, as the golden file has it."""
    expected = {}
    for name in CASES:
        content = make_content(name)
        rows = make_results(name, content)
        fixed = best_of_each_class(rows, FIXED[name])
        expected[name] = {
            f"lvis_{task}{kind}": lvis_numbers(content, chosen, task, limit)
            for task in ("bbox", "segm")
            for kind, chosen, limit in (("", rows, 300), ("_fixed", fixed, -1))
        }
    return expected


FIXED = {"plain": 10_000, "ties": 40, "crowded": 200, "sparse": 5}
"""Detections of a class that count for fixed AP."""


if __name__ == "__main__":
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n")
    sys.stdout.write(GOLDEN.read_text())
