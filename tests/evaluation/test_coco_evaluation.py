"""COCO's metric over a store, compared with pycocotools on the same objects."""

import contextlib
import io
import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from longtail_det2.evaluation.coco_metric import COCOMetric
from longtail_det2.evaluation.evaluator import StoreEvaluator, build_evaluators
from longtail_det2.evaluation.ground_truth import StoreGroundTruth

SIZE = 160
CATEGORIES = [{"id": 4 * k + 3, "name": name} for k, name in enumerate(["thing", "cat", "dog", "car"])]
HIERARCHY = {"cat": ["thing"], "dog": ["thing"]}


def random_box(generator):
    width, height = generator.integers(6, 120, 2)
    x, y = generator.integers(0, SIZE - width), generator.integers(0, SIZE - height)
    return [int(value) for value in (x, y, width, height)]


def make_content(seed, images=12, with_masks=True):
    generator = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(int(generator.integers(0, 6))):
            x, y, width, height = random_box(generator)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": CATEGORIES[int(generator.integers(0, 4))]["id"],
                    "bbox": [x, y, width, height],
                    "iscrowd": int(generator.random() < 0.1),
                }
            )
            if with_masks:
                corners = [x, y, x + width, y, x + width, y + height, x, y + height][: 6 + 2 * (x % 2)]
                annotations[-1]["segmentation"] = [corners]
    entries = [
        {"id": k, "file_name": f"{k}.png", "height": SIZE, "width": SIZE} for k in range(1, images + 1)
    ]
    return {"images": entries, "annotations": annotations, "categories": CATEGORIES}


def make_outputs(content, seed, classes=4):
    """Detections near the objects, and some elsewhere, some labels confused."""
    generator = np.random.default_rng(seed)
    outputs = []
    for image in content["images"]:
        boxes, labels = [], []
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                for _ in range(int(generator.integers(0, 3))):
                    x, y, width, height = np.array(one["bbox"]) + generator.integers(-6, 7, 4)
                    boxes.append([x, y, x + max(width, 3), y + max(height, 3)])
                    confused = generator.random() < 0.2
                    labels.append(
                        generator.integers(0, classes) if confused else (one["category_id"] - 3) // 4
                    )
        for _ in range(3):
            x, y, width, height = random_box(generator)
            boxes.append([x, y, x + width, y + height])
            labels.append(generator.integers(0, classes))
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.tensor(np.array(boxes), dtype=torch.float32).clamp(0, SIZE))
        found.pred_classes = torch.tensor([int(label) for label in labels])
        found.scores = torch.from_numpy(generator.random(len(boxes))).float()
        grid = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
        for place, (x0, y0, x1, y1) in enumerate(found.pred_boxes.tensor.round().int().tolist()):
            grid[place, y0:y1, x0:x1] = True
            grid[place, y0 : (y0 + y1) // 3, (x0 + x1) // 2 : x1] = False
        found.pred_masks = grid
        outputs.append(({"image_id": str(image["id"]), "height": SIZE, "width": SIZE}, {"instances": found}))
    return outputs


def evaluate(store, outputs, tasks=("bbox", "segm"), max_detections=100, **options):
    evaluator = StoreEvaluator(store, [COCOMetric(tasks, max_detections)], **options)
    for one, output in outputs:
        evaluator.process([one], [output])
    return evaluator.evaluate()


def coco_ground_truth(store, task):
    """Content of a COCO file about a store, ids being positions: an annotation per class of an object."""
    gt = StoreGroundTruth(store)
    masks = gt.masks(gt.object) if task == "segm" else [None] * len(gt.object)
    annotations = [
        {
            "id": number,  # a match with id 0 would be none
            "image_id": int(gt.image[number - 1]),
            "category_id": int(gt.cls[number - 1]),
            "bbox": gt.box[row].tolist(),
            "area": float(gt.area[row]),
            "iscrowd": int(gt.ignored(np.array([row]), task)[0]),
            "segmentation": mask,
        }
        for number, (row, mask) in enumerate(zip(gt.object.tolist(), masks, strict=True), start=1)
    ]
    images = [{"id": k, "height": SIZE, "width": SIZE} for k in range(len(store))]
    categories = [{"id": k, "name": name} for k, name in enumerate(store.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def reference(truth, outputs, task, max_detections=100):
    """The numbers of pycocotools on a COCO dict and the outputs of its images."""
    rows = []
    for one, output in outputs:
        found = output["instances"]
        for box, score, label, mask in zip(
            found.pred_boxes.tensor.double().tolist(),
            found.scores.double().tolist(),
            found.pred_classes.tolist(),
            found.pred_masks,
            strict=True,
        ):
            row = {"image_id": one["position"], "category_id": label, "score": score}
            if task == "bbox":
                row["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            else:  # without a box the areas are those of the masks
                row["segmentation"] = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(rows), task)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return dict(zip(names, 100 * evaluation.stats[:6], strict=True))


def in_store_order(store, outputs):
    place = {name.decode(): k for k, name in enumerate(store.image_ids.tolist())}
    return [({**one, "position": place[one["image_id"]]}, output) for one, output in outputs]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hierarchy", [None, HIERARCHY])
def test_equal_to_pycocotools(make_lvis_store, seed, hierarchy):
    content = make_content(seed)
    store = make_lvis_store(content, hierarchy)
    outputs = make_outputs(content, seed)
    results = evaluate(store, outputs)
    for task in ("bbox", "segm"):
        truth = json.loads(json.dumps(coco_ground_truth(store, task), default=lambda data: data.decode()))
        expected = reference(truth, in_store_order(store, outputs), task)
        found = results[f"coco_{task}"]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9) or (np.isnan(found[name]) and value == -100)
        assert 5 < found["AP50"] < 99


def test_perfect_detections(make_lvis_store):
    content = make_content(5)
    for one in content["annotations"]:
        one["iscrowd"] = 0
    store = make_lvis_store(content, HIERARCHY)
    outputs = []
    for image in content["images"]:
        rows = []
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                label = (one["category_id"] - 3) // 4
                rows += [(one, label)] + [(one, 0)] * (label in (1, 2))
        found = Instances((SIZE, SIZE))
        boxes = np.array([one["bbox"] for one, _ in rows], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(torch.from_numpy(boxes))
        found.scores = torch.ones(len(rows))
        found.pred_classes = torch.tensor([label for _, label in rows], dtype=torch.int64)
        masks = [
            coco_mask.decode(coco_mask.frPyObjects(one["segmentation"], SIZE, SIZE))[..., 0]
            for one, _ in rows
        ]
        found.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, SIZE, SIZE)).bool()
        outputs.append(({"image_id": str(image["id"])}, {"instances": found}))
    results = evaluate(store, outputs, train_counts=[9, 9, 3, 1], frequency_thresholds=(2, 5))
    for task in ("coco_bbox", "coco_segm"):
        assert all(value == pytest.approx(100) or np.isnan(value) for value in results[task].values())
    assert list(results["coco_segm"])[-4:] == ["AP_leaves", "AP_head", "AP_medium", "AP_tail"]


def test_unverified_classes_do_not_count(make_lvis_store):
    content = make_content(3)
    for one in content["images"]:
        one["neg_category_ids"] = [15]
    store = make_lvis_store(content, HIERARCHY)
    verified = StoreGroundTruth(store).verified
    present = {(one["image_id"], (one["category_id"] - 3) // 4) for one in content["annotations"]}
    for row, name in enumerate(store.image_ids.tolist()):
        classes = {label for image, label in present if image == int(name)}
        expected = classes | {3} | ({0} if classes & {1, 2} else set())
        assert set((verified[verified // 4 == row] % 4).tolist()) == expected
    outputs = make_outputs(content, 3)
    strict = evaluate(make_lvis_store(make_content(3), HIERARCHY, "strict"), outputs)["coco_bbox"]["AP"]
    assert evaluate(store, outputs)["coco_bbox"]["AP"] > strict


def test_a_class_verified_absent_has_its_descendants_absent(make_lvis_store):
    content = make_content(3, images=1)
    content["annotations"] = []
    content["images"][0]["neg_category_ids"] = [3]
    assert sorted(StoreGroundTruth(make_lvis_store(content, HIERARCHY)).verified.tolist()) == [0, 1, 2]


def test_objects_without_mask_are_ignored_regions(make_lvis_store):
    content = make_content(7)
    for one in content["annotations"]:
        one["iscrowd"] = 0
    for one in content["annotations"][::2]:
        del one["segmentation"]
    store = make_lvis_store(content)
    truth = coco_ground_truth(store, "segm")["annotations"]
    assert sum(one["iscrowd"] for one in truth) == len(content["annotations"][::2])
    assert not any(one["iscrowd"] for one in coco_ground_truth(store, "bbox")["annotations"])
    assert evaluate(store, make_outputs(content, 7))["coco_segm"]["AP"] >= 0


def test_files(make_lvis_store, tmp_path):
    content = make_content(1)
    store = make_lvis_store(content)
    outputs = make_outputs(content, 1)
    results = evaluate(store, outputs, output_dir=tmp_path / "out", max_detections=2)
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["summary"]["coco_segm"]["AP"] == pytest.approx(results["coco_segm"]["AP"] / 100)
    assert [one["id"] for one in written["classes"]] == ["3", "7", "11", "15"]
    per_class = [one["coco_bbox"] for one in written["classes"]]
    assert np.mean(per_class) == pytest.approx(written["summary"]["coco_bbox"]["AP"])
    rows = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)
    assert written["metrics"]["coco"]["options"] == {"tasks": ["bbox", "segm"], "max_detections": 2}
    (tmp_path / "file.json").write_text(json.dumps(content_for_pycocotools(content)))
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO(str(tmp_path / "file.json"))
        evaluation = COCOeval(
            ground, ground.loadRes(str(tmp_path / "out/coco_instances_results.json")), "segm"
        )
        evaluation.params.maxDets = [1, 2, 2]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    assert results["coco_segm"]["AP"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)


def content_for_pycocotools(content):
    for one in content["annotations"]:
        runs = coco_mask.frPyObjects(one["segmentation"], SIZE, SIZE)
        one["area"] = float(coco_mask.area(runs)[0])
        if one["iscrowd"]:  # which it wants as run lengths
            one["segmentation"] = {"size": [SIZE, SIZE], "counts": runs[0]["counts"].decode()}
    return content


def test_padded_and_foreign_images(make_lvis_store, caplog):
    content = make_content(4)
    store = make_lvis_store(content)
    outputs = make_outputs(content, 4)
    once = evaluate(store, outputs)
    foreign = ({"image_id": "no such image"}, outputs[0][1])
    padded = evaluate(store, [*outputs, outputs[0], foreign])
    assert all(padded[task] == pytest.approx(once[task], nan_ok=True) for task in once)
    assert "1 outputs are of images that are not in" in caplog.text
    evaluate(store, outputs[1:])
    assert "1 of 12 images had no output" in caplog.text


def test_detections_that_are_not_finite_are_left_out(make_lvis_store):
    content = make_content(4)
    store = make_lvis_store(content)
    outputs = make_outputs(content, 4)
    outputs[0][1]["instances"].scores[0] = float("nan")
    outputs[0][1]["instances"].pred_boxes.tensor[1, 0] = float("inf")
    assert np.isfinite(evaluate(store, outputs)["coco_bbox"]["AP"])


def test_both_metrics_at_once(make_lvis_store, tmp_path):
    content = make_content(6)
    store = make_lvis_store(content)
    for metrics, expected in (
        ((), ["coco_segm"]),
        (("open_images",), ["bbox"]),
        (("open_images", "coco"), ["bbox", "coco_segm"]),
    ):
        evaluators = build_evaluators(
            store.path, metrics=metrics, tasks=["segm"], output_dir=tmp_path / "out"
        )
        evaluators.reset()
        for one, output in make_outputs(content, 6):
            evaluators.process([one], [output])
        assert list(evaluators.evaluate()) == expected
