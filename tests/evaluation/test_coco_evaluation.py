"""COCO's metric over a store, compared with pycocotools on the same objects."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from lvis_cases import (
    HEIGHT,
    HIERARCHY,
    PARENTS,
    TASKS,
    WIDTH,
    expanded,
    feed,
    make_content,
    make_outputs,
    make_results,
    runs_of,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from longtail_det2.evaluation.coco_metric import COCOMetric
from longtail_det2.evaluation.evaluator import StoreEvaluator
from longtail_det2.evaluation.ground_truth import StoreGroundTruth, box_mask


def coco_content(case, crowds=True):
    """A data set of `lvis_cases` in COCO's form; every ninth object is a crowd."""
    content = make_content(case)
    for one in content["categories"]:
        del one["frequency"]
    for one in content["images"]:
        del one["neg_category_ids"], one["not_exhaustive_category_ids"]
    for one in content["annotations"] if crowds else ():
        one["iscrowd"] = int(one["id"] % 9 == 0)
    return content


def evaluate(store, outputs, max_detections=100, **options):
    return feed(StoreEvaluator(store, [COCOMetric(TASKS, max_detections)], **options), outputs).evaluate()


def reference(content, rows, task, max_detections=100):
    """The numbers of pycocotools on the content of a file and of one of results."""
    content, rows = copy.deepcopy(content), copy.deepcopy(rows)
    for one in content["annotations"]:
        one.setdefault("iscrowd", 0)
    for row in rows if task == "segm" else ():
        del row["bbox"]  # else it takes the areas of boxes
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = content
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(rows), task)
        evaluation.params.maxDets = [1, min(10, max_detections), max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = evaluation.stats[:6].tolist()
    if max_detections != 100:  # of the summary, which looks for 100 detections
        precision = evaluation.eval["precision"][..., 0, -1]
        values = [precision[precision > -1].mean()]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return {name: 100 * value for name, value in zip(names, values, strict=False)}


@pytest.mark.parametrize("case", ["plain", "ties", "sparse"])
@pytest.mark.parametrize("hierarchy", [None, HIERARCHY])
def test_equal_to_pycocotools(make_lvis_store, case, hierarchy):
    content = coco_content(case)
    rows = make_results(case, content)
    results = evaluate(make_lvis_store(content, hierarchy), make_outputs(content, rows))
    for task in TASKS:
        found = results[f"coco_{task}"]
        for name, value in reference(expanded(content) if hierarchy else content, rows, task).items():
            assert found[name] == pytest.approx(value, abs=1e-9) or (np.isnan(found[name]) and value == -100)
        assert 5 < found["AP50"] < 99


def perfect_rows(content):
    """What a detector that knows everything says."""
    rows = []
    for one in content["annotations"]:
        labels = {one["category_id"], PARENTS.get(one["category_id"], one["category_id"])}
        runs = runs_of(one["segmentation"][0])
        rows += [{**one, "category_id": label, "score": 1.0, "segmentation": runs} for label in labels]
    return rows


def test_perfect_detections(make_lvis_store):
    content = coco_content("ties", crowds=False)
    options = {"train_counts": [9, 9, 9, 5, 3, 1], "frequency_thresholds": (2, 5)}
    outputs = make_outputs(content, perfect_rows(content))
    results = evaluate(make_lvis_store(content, HIERARCHY), outputs, **options)
    for task in ("coco_bbox", "coco_segm"):
        assert all(value == pytest.approx(100) or np.isnan(value) for value in results[task].values())
    assert list(results["coco_segm"])[-4:] == ["AP_leaves", "AP_head", "AP_medium", "AP_tail"]


def test_unverified_classes_do_not_count(make_lvis_store):
    content = coco_content("ties")
    outputs = make_outputs(content, make_results("ties", content))
    strict = evaluate(make_lvis_store(content, HIERARCHY, "strict"), outputs)["coco_bbox"]["AP"]
    for one in content["images"]:
        one["neg_category_ids"] = [7]  # and with it the classes 3 and 5, which are below
    store = make_lvis_store(content, HIERARCHY)
    verified = StoreGroundTruth(store).verified
    present = {(one["image_id"], one["category_id"]) for one in content["annotations"]}
    for row, name in enumerate(store.image_ids.tolist()):
        classes = {label for image, label in present if image == int(name)}
        classes |= {PARENTS[label] for label in classes if label in PARENTS}
        expected = {(label - 5) // 2 for label in classes} | {1, 3, 5}
        assert set((verified[verified // 6 == row] % 6).tolist()) == expected
    assert evaluate(store, outputs)["coco_bbox"]["AP"] > strict


def test_objects_without_mask_are_ignored_regions(make_lvis_store):
    content = coco_content("ties", crowds=False)
    rows = make_results("ties", content)
    outputs = make_outputs(content, rows)
    for one in content["annotations"][::2]:
        del one["segmentation"], one["area"]
    store = make_lvis_store(content)
    for one in content["annotations"][::2]:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    expected = reference(content, rows, "bbox")
    for one in content["annotations"][::2]:
        one["segmentation"], one["iscrowd"] = box_mask(np.array(one["bbox"]), HEIGHT, WIDTH), 1
    results = evaluate(store, outputs)
    assert results["coco_bbox"]["AP"] == pytest.approx(expected["AP"], abs=1e-9)
    expected = reference(content, rows, "segm")
    assert results["coco_segm"]["AP"] == pytest.approx(expected["AP"], abs=1e-9)


def test_files(make_lvis_store, tmp_path):
    content = coco_content("ties")
    outputs = make_outputs(content, make_results("ties", content))
    results = evaluate(make_lvis_store(content), outputs, 2, output_dir=tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["summary"]["coco_segm"]["AP"] == pytest.approx(results["coco_segm"]["AP"] / 100)
    assert [one["id"] for one in written["classes"]] == ["5", "7", "9", "11", "13", "15"]
    per_class = [one["coco_bbox"] for one in written["classes"]]
    assert np.mean(per_class) == pytest.approx(written["summary"]["coco_bbox"]["AP"])
    assert written["metrics"]["coco"]["options"] == {"tasks": ["bbox", "segm"], "max_detections": 2}
    rows = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)
    for task in TASKS:
        expected = reference(content, rows, task, 2)
        assert results[f"coco_{task}"]["AP"] == pytest.approx(expected["AP"], abs=1e-9)
