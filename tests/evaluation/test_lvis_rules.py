"""LVIS's rules one by one, on data that a reader can check by hand, and what a store adds to them."""

import copy
import json
import logging
import math

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from factories import store_columns
from lvis_cases import (
    HEIGHT,
    TASKS,
    WIDTH,
    assert_equal,
    best_of_each_class,
    evaluate,
    feed,
    instances_of,
    lvis_numbers,
    make_content,
    make_evaluator,
    make_outputs,
    make_results,
)

from longtail_det2.data.store import write_store
from longtail_det2.evaluation.coco_metric import best_of, class_frequencies
from longtail_det2.evaluation.evaluator import build_evaluators
from longtail_det2.evaluation.ground_truth import StoreGroundTruth, box_mask
from longtail_det2.utils.errors import ConfigError

BOX = [10, 10, 20, 20]
FAR = [100, 60, 20, 20]


def small_content(**image):
    """One image with one object of class 5; classes 5 (rare), 7 and 9 (frequent)."""
    entry = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    entry |= {"neg_category_ids": [], "not_exhaustive_category_ids": [], **image}
    x, y, w, h = BOX
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": BOX, "area": 400.0}
    annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    categories = [
        {"id": k, "name": str(k), "synset": f"c{k}.n.01", "frequency": group}
        for k, group in ((5, "r"), (7, "f"), (9, "f"))
    ]
    return {"images": [entry], "annotations": [annotation], "categories": categories}


def outputs_of(content, *rows):
    """One image's detections (category id, box, score), without masks."""
    index = {one["id"]: place for place, one in enumerate(content["categories"])}
    found = Instances((HEIGHT, WIDTH))
    box = torch.tensor([box for _, box, _ in rows], dtype=torch.float32).reshape(-1, 4)
    found.pred_boxes = Boxes(torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], dim=1))
    found.pred_classes = torch.tensor([index[label] for label, _, _ in rows], dtype=torch.int64)
    found.scores = torch.tensor([score for _, _, score in rows], dtype=torch.float32)
    return [({"image_id": "1"}, {"instances": found})]


def average(make_lvis_store, content, *rows, name="store", **options):
    store = make_lvis_store(content, name=name)
    return evaluate(store, outputs_of(content, *rows), tasks=("bbox",), **options)["lvis_bbox"]["AP"]


def test_classes_that_nobody_looked_for_do_not_count(make_lvis_store):
    content = small_content()
    content["annotations"].append(
        {**copy.deepcopy(content["annotations"][0]), "id": 2, "category_id": 7, "image_id": 2}
    )
    content["images"].append({**content["images"][0], "id": 2, "file_name": "2.png"})
    found = [(5, BOX, 0.5), (7, FAR, 0.9)]
    values = {}
    for name, image in (("free", {}), ("absent", {"neg_category_ids": [7]})):
        content["images"][0] |= image
        store = make_lvis_store(content, name=name)
        # The object of class 7 in the second image is found below the wrong one in the first.
        other = outputs_of(content, (7, BOX, 0.4))
        outputs = [*outputs_of(content, *found), ({"image_id": "2"}, other[0][1])]
        values[name] = evaluate(store, outputs, tasks=("bbox",))["lvis_bbox"]
    assert values["free"]["AP"] == pytest.approx(100) and values["absent"]["AP"] == pytest.approx(75)
    assert values["absent"]["APr"] == pytest.approx(100) and values["absent"]["APf"] == pytest.approx(50)
    assert math.isnan(values["free"]["APc"])


def test_unmatched_detections_of_classes_that_are_not_exhaustive_do_not_count(make_lvis_store):
    found = [(5, FAR, 0.9), (5, BOX, 0.5)]
    assert average(make_lvis_store, small_content(), *found) == pytest.approx(50)
    partly = small_content(not_exhaustive_category_ids=[5])
    assert average(make_lvis_store, partly, *found, name="partly") == pytest.approx(100)


def test_best_detections_of_an_image_over_all_classes(make_lvis_store):
    content = small_content()
    rows = [(7, FAR, 0.9), (7, FAR, 0.5), (5, BOX, 0.5)]
    assert average(make_lvis_store, content, *rows, max_detections=3) == pytest.approx(100)
    assert average(make_lvis_store, content, *rows, max_detections=2) == 0  # the first of equal scores stays
    results = evaluate(
        make_lvis_store(content),
        outputs_of(content, *rows),
        tasks=("bbox",),
        max_detections=2,
        fixed_ap_detections=1,
    )
    assert results["lvis_bbox"]["AP"] == 0 and results["lvis_bbox_fixed"]["AP"] == pytest.approx(100)


def test_choices_of_detections():
    image = np.array([0, 0, 0, 0, 1, 1, 2])
    cls = np.array([0, 1, 1, 0, 0, 1, 0])
    score = np.array([0.5, 0.9, 0.5, 0.5, 0.7, 0.7, 0.5], dtype=np.float32)
    assert best_of(image, score, image, 300).tolist() == list(range(7))
    assert best_of(image, score, image, 2).tolist() == [0, 1, 4, 5, 6]
    assert best_of(image, score, image, 1).tolist() == [1, 4, 6]
    assert best_of(cls, score, image, 2).tolist() == [0, 1, 4, 5]
    assert best_of(cls, score, -image, 2).tolist() == [1, 4, 5, 6]  # of equal scores the last image's
    assert best_of(cls, score, image, 1).tolist() == [1, 4]
    assert len(best_of(cls[:0], score[:0], image[:0], 3)) == 0


@pytest.mark.parametrize(("names", "rank"), [(["10", "4", "9"], [2, 0, 1]), (["10", "4", "9a"], [0, 1, 2])])
def test_images_are_ordered_as_numbers(tmp_path, names, rank):
    assert StoreGroundTruth(flat_store(tmp_path / "store", names=names)).image_rank.tolist() == rank


def test_fixed_ap_warns_of_limited_detectors(make_lvis_store, caplog):
    content = make_content("plain")
    store, rows = make_lvis_store(content), make_results("plain", content)
    evaluate(store, make_outputs(content, rows), tasks=("bbox",))
    assert "9 of 9 classes have fewer than 10000 detections" in caplog.text
    assert "The most in an image are 25, in 24 of 24 images" in caplog.text
    caplog.clear()
    evaluate(store, make_outputs(content, rows[:-1]), tasks=("bbox",), fixed_ap_detections=1)
    results = evaluate(store, make_outputs(content, rows), tasks=("bbox",), fixed_ap_detections=0)
    assert "fixed AP" not in caplog.text and list(results) == ["lvis_bbox"]


HIERARCHY = {f"class {k}": [f"class {k % 2}"] for k in range(2, 6)}


def expanded(content, parents):
    """The same as a flat LVIS file: objects and what is not exhaustive go up, what is absent goes down."""
    content = copy.deepcopy(content)
    children = {above: [k for k, one in parents.items() if one == above] for above in parents.values()}
    for one in list(content["annotations"]):
        if one["category_id"] in parents:
            above = {**one, "category_id": parents[one["category_id"]], "id": len(content["annotations"]) + 1}
            content["annotations"].append(above)
    for image in content["images"]:
        partly, absent = image["not_exhaustive_category_ids"], image["neg_category_ids"]
        partly += [parents[k] for k in partly if k in parents]
        absent += [below for k in absent for below in children.get(k, ())]
    return content


def test_objects_of_several_labels_and_their_ancestors(make_lvis_store):
    """As lvis on a file in which all of that is spelt out."""
    pytest.importorskip("lvis")
    content = make_content("ties")
    parents = {2 * k + 5: 2 * (k % 2) + 5 for k in range(2, 6)}
    rows = make_results("ties", content)
    rows += [
        {**row, "category_id": parents[row["category_id"]]} for row in rows if row["category_id"] in parents
    ]
    rows.sort(key=lambda row: row["image_id"])
    results = evaluate(
        make_lvis_store(content, HIERARCHY), make_outputs(content, rows), fixed_ap_detections=40
    )
    flat = expanded(content, parents)
    for task in TASKS:
        assert_equal(results[f"lvis_{task}"], lvis_numbers(flat, rows, task))
        fixed = best_of_each_class(rows, 40)
        assert_equal(results[f"lvis_{task}_fixed"], lvis_numbers(flat, fixed, task, -1))
    without = lvis_numbers(content, rows, "bbox")["AP"]
    assert abs(results["lvis_bbox"]["AP"] - without) > 0.1


def test_two_labels_of_one_object(make_lvis_store):
    """An object annotated with a class and its ancestor is the ancestor once."""
    content = small_content()
    content["annotations"][0]["category_ids"] = [5, 7]
    found = [(5, BOX, 0.9), (7, BOX, 0.8)]
    store = make_lvis_store(content, {"5": ["7"]})
    assert store.num_objects == 1
    results = evaluate(store, outputs_of(content, *found), tasks=("bbox",))
    assert results["lvis_bbox"]["AP"] == pytest.approx(100)
    one_missing = evaluate(store, outputs_of(content, found[0]), tasks=("bbox",))
    assert one_missing["lvis_bbox"]["AP"] == pytest.approx(50)


def test_boxes_around_groups_and_objects_without_masks(make_lvis_store):
    """Detections in them count neither way, as in COCO's metric."""
    content = small_content()
    crowd = {"id": 2, "image_id": 1, "category_id": 5, "bbox": FAR, "area": 400.0, "iscrowd": 1}
    content["annotations"].append(crowd)
    found = [(5, FAR, 0.9), (5, BOX, 0.5)]
    assert average(make_lvis_store, content, *found) == pytest.approx(100)
    crowd["iscrowd"] = 0
    store = make_lvis_store(content, name="no_mask")
    rows = [{"category_id": k, "bbox": box, "score": score} for k, box, score in found]
    for row in rows:
        row["segmentation"] = box_mask(np.array(row["bbox"]), HEIGHT, WIDTH)
    outputs = [({"image_id": "1"}, {"instances": instances_of(rows, {5: 0, 7: 1, 9: 2})})]
    results = evaluate(store, outputs)
    assert results["lvis_segm"]["AP"] == pytest.approx(results["lvis_bbox"]["AP"]) == pytest.approx(100)
    missed = evaluate(store, [])
    assert missed["lvis_segm"]["AP"] == missed["lvis_bbox"]["AP"] == 0


@pytest.mark.parametrize("kind", ["no_outputs", "empty_outputs", "no_area"])
def test_nothing_found(make_lvis_store, tmp_path, kind):
    content = make_content("plain")
    store = make_lvis_store(content)
    rows = make_results("plain", content) if kind == "no_area" else []
    empty = coco_mask.encode(np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F"))
    for row in rows:
        row["bbox"][2], row["segmentation"] = 0, empty
    outputs = [] if kind == "no_outputs" else make_outputs(content, rows)
    results = evaluate(store, outputs, output_dir=tmp_path / "out")
    with_all = evaluate(store, make_outputs(content, make_results("plain", content)))
    for task, values in results.items():
        assert values["AP"] == 0
        assert [math.isnan(v) for v in values.values()] == [math.isnan(v) for v in with_all[task].values()]
    assert len(json.loads((tmp_path / "out/coco_instances_results.json").read_text())) == len(rows)


def test_files(make_lvis_store, tmp_path):
    content = make_content("plain")
    for one in content["categories"]:
        one["frequency"] = "r" if one["frequency"] == "c" else one["frequency"]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 5]
    store = make_lvis_store(content)
    outputs = make_outputs(content, make_results("plain", content))
    results = evaluate(store, outputs, output_dir=tmp_path / "new/out", train_counts=range(9))
    document = json.loads((tmp_path / "new/out/results.json").read_text())
    assert math.isnan(results["lvis_bbox"]["APc"]) and document["summary"]["lvis_bbox"]["APc"] is None
    assert document["summary"]["lvis_segm"]["AP"] == pytest.approx(results["lvis_segm"]["AP"] / 100)
    classes = document["classes"]
    assert [one["id"] for one in classes] == [str(k) for k in range(5, 23, 2)] and classes[0][
        "lvis_bbox"
    ] is None
    assert [one["frequency"] for one in classes] == list("rrfrrfrrf")
    assert [one["train_images"] for one in classes] == list(range(9))
    known = [one["lvis_bbox_fixed"] for one in classes if one["lvis_bbox_fixed"] is not None]
    assert np.mean(known) == pytest.approx(document["summary"]["lvis_bbox_fixed"]["AP"])
    options = document["metrics"]["lvis"]["options"]
    assert options == {"tasks": list(TASKS), "max_detections": 300, "fixed_ap_detections": 10_000}
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [
        "coco_instances_results.json",
        "results.json",
    ]


def flat_store(path, classes=3, frequency=None, names=("a",)):
    columns = store_columns(names, (HEIGHT, WIDTH), [(0, [0, 0, 0.5, 0.5], [0], 0)])
    return write_store(path, columns, [f"c{k}" for k in range(classes)], frequency=frequency)


def test_frequencies(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    unknown = flat_store(tmp_path / "unknown", classes=5)
    assert class_frequencies(unknown, None).tolist() == [""] * 5
    assert "APr, APc and APf are NaN" in caplog.text
    counts = np.array([0, 10, 11, 100, 101])
    assert class_frequencies(unknown, counts).tolist() == ["r", "r", "c", "c", "f"]
    assert "at most 10 training images are rare, in at most 100 common" in caplog.text
    known = flat_store(tmp_path / "known", frequency=["f", "c", "r"])
    assert class_frequencies(known, np.zeros(3)).tolist() == ["f", "c", "r"]
    assert math.isnan(evaluate(unknown, [], tasks=("bbox",))["lvis_bbox"]["APr"])
    with pytest.raises(ConfigError, match="the same classes"):
        make_evaluator(known, train_counts=[1, 2], tasks=("bbox",))


def test_what_cannot_be_evaluated(tmp_path, make_lvis_store):
    store = flat_store(tmp_path / "flat")
    for tasks in ((), ("keypoints",)):
        with pytest.raises(ConfigError, match=r"TEST\.TASKS may have"):
            make_evaluator(store, tasks=tasks)
    with pytest.raises(ConfigError, match=r"has no masks.*TEST\.TASKS \('bbox',\)"):
        make_evaluator(store, tasks=("segm",))
    for options in ({"max_detections": 0}, {"fixed_ap_detections": -1}):
        with pytest.raises(ConfigError, match=r"at least 1, and .* at least 0"):
            make_evaluator(store, tasks=("bbox",), **options)
    with pytest.raises(ConfigError, match=r"TEST\.METRICS: .*'voc'.* open_images, coco, lvis"):
        build_evaluators(str(store.path), metrics=["voc"])
    with pytest.raises(ConfigError, match=r"dataloader\.evaluator\.open_images: .*'iou'"):
        build_evaluators(str(store.path), metrics=["open_images"], open_images={"iou": 0.5})
    content = small_content()
    with_masks, outputs = make_lvis_store(content), outputs_of(content, (5, BOX, 0.5))
    for name in ("lvis", "coco"):
        with pytest.raises(ConfigError, match=r"the model gives none .*MODEL\.MASK_ON"):
            feed(build_evaluators(str(with_masks.path), metrics=[name], tasks=["segm"]), outputs)
    outputs[0][1]["instances"].pred_classes[0] = 3
    with pytest.raises(ConfigError, match=r"class 3, but .* has 3 classes"):
        feed(make_evaluator(with_masks, tasks=("bbox",)), outputs)


def test_metrics_side_by_side(make_lvis_store, tmp_path):
    content = make_content("plain")
    store = make_lvis_store(content)
    outputs = make_outputs(content, make_results("plain", content))
    options = {"metrics": ["open_images", "coco", "lvis"], "tasks": TASKS, "lvis": {"fixed_ap_detections": 0}}
    evaluators = build_evaluators(str(store.path), output_dir=tmp_path / "out", **options)
    results = feed(evaluators, outputs).evaluate()
    assert list(results) == ["bbox", "coco_bbox", "coco_segm", "lvis_bbox", "lvis_segm"]
    assert set(json.loads((tmp_path / "out/results.json").read_text())["summary"]) == set(results)
    alone = feed(build_evaluators(str(store.path)), outputs).evaluate()
    assert list(alone) == ["lvis_bbox", "lvis_bbox_fixed"]
    assert alone["lvis_bbox"] == pytest.approx(results["lvis_bbox"], nan_ok=True)
