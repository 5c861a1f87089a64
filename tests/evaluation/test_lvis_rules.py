"""What a store adds to LVIS's rules, on data that a reader can check by hand, options, files and warnings."""

import json
import logging
import math

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from factories import store_columns
from lvis_cases import (
    HEIGHT,
    TASKS,
    WIDTH,
    evaluate,
    feed,
    make_content,
    make_evaluator,
    make_outputs,
    make_results,
)

from longtail_det2.data.store import write_store
from longtail_det2.evaluation.coco_metric import class_frequencies
from longtail_det2.evaluation.evaluator import build_evaluators
from longtail_det2.evaluation.ground_truth import StoreGroundTruth, box_mask
from longtail_det2.utils.errors import ConfigError

BOX = [10, 10, 20, 20]
FAR = [100, 60, 20, 20]


def small_content():
    """One image with one object of class 5; classes 5 (rare), 7 and 9 (frequent)."""
    entry = {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}
    entry |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    x, y, w, h = BOX
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": BOX, "area": 400.0}
    annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    categories = [
        {"id": k, "name": str(k), "frequency": group} for k, group in ((5, "r"), (7, "f"), (9, "f"))
    ]
    return {"images": [entry], "annotations": [annotation], "categories": categories}


def row(category, box, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


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


def test_two_labels_of_one_object(make_lvis_store):
    """An object annotated with a class and its ancestor is the ancestor once."""
    content = small_content()
    content["annotations"][0]["category_ids"] = [5, 7]
    store = make_lvis_store(content, {"5": ["7"]})
    assert store.num_objects == 1
    rows = [row(5, BOX, 0.9), row(7, BOX, 0.8)]
    for found, expected in ((rows, 100), (rows[:1], 50)):
        results = evaluate(store, make_outputs(content, found), tasks=("bbox",))
        assert results["lvis_bbox"]["AP"] == pytest.approx(expected)


def test_boxes_around_groups_and_objects_without_masks(make_lvis_store):
    """Detections in them count neither way, as in COCO's metric."""
    content = small_content()
    crowd = {"id": 2, "image_id": 1, "category_id": 5, "bbox": FAR, "area": 400.0, "iscrowd": 1}
    content["annotations"].append(crowd)
    rows = [row(5, FAR, 0.9), row(5, BOX, 0.5)]
    results = evaluate(make_lvis_store(content), make_outputs(content, rows), tasks=("bbox",))
    assert results["lvis_bbox"]["AP"] == pytest.approx(100)
    crowd["iscrowd"] = 0
    store = make_lvis_store(content, name="no_mask")
    for one in rows:
        one["segmentation"] = box_mask(np.array(one["bbox"]), HEIGHT, WIDTH)
    results = evaluate(store, make_outputs(content, rows))
    assert results["lvis_segm"]["AP"] == pytest.approx(results["lvis_bbox"]["AP"]) == pytest.approx(100)
    missed = evaluate(store, [])
    assert missed["lvis_segm"]["AP"] == missed["lvis_bbox"]["AP"] == 0


@pytest.mark.parametrize("kind", ["no_outputs", "empty_outputs", "no_area"])
def test_nothing_found(make_lvis_store, kind):
    content = make_content("plain")
    rows = make_results("plain", content) if kind == "no_area" else []
    empty = coco_mask.encode(np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F"))
    for one in rows:
        one["bbox"][2], one["segmentation"] = 0, empty
    outputs = [] if kind == "no_outputs" else make_outputs(content, rows)
    for values in evaluate(make_lvis_store(content), outputs).values():
        assert set(values.values()) == {0}


def test_files(make_lvis_store, tmp_path):
    content = make_content("plain")
    for one in content["categories"]:
        one["frequency"] = "r" if one["frequency"] == "c" else one["frequency"]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 5]
    outputs = make_outputs(content, make_results("plain", content))
    out = tmp_path / "new/out"
    results = evaluate(make_lvis_store(content), outputs, output_dir=out, train_counts=range(9))
    document = json.loads((out / "results.json").read_text())
    assert math.isnan(results["lvis_bbox"]["APc"]) and document["summary"]["lvis_bbox"]["APc"] is None
    assert document["summary"]["lvis_segm"]["AP"] == pytest.approx(results["lvis_segm"]["AP"] / 100)
    classes = document["classes"]
    assert [one["id"] for one in classes] == [str(k) for k in range(5, 23, 2)]
    assert classes[0]["lvis_bbox"] is None
    assert [one["frequency"] for one in classes] == list("rrfrrfrrf")
    assert [one["train_images"] for one in classes] == list(range(9))
    known = [one["lvis_bbox_fixed"] for one in classes if one["lvis_bbox_fixed"] is not None]
    assert np.mean(known) == pytest.approx(document["summary"]["lvis_bbox_fixed"]["AP"])
    options = document["metrics"]["lvis"]["options"]
    assert options == {"tasks": list(TASKS), "max_detections": 300, "fixed_ap_detections": 10_000}
    assert sorted(path.name for path in out.iterdir()) == ["coco_instances_results.json", "results.json"]


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


def test_what_cannot_be_evaluated(tmp_path, make_lvis_store):
    store = flat_store(tmp_path / "flat")
    for message, options in (
        (r"TEST\.TASKS may have", {"tasks": ()}),
        (r"TEST\.TASKS may have", {"tasks": ("keypoints",)}),
        (r"has no masks.*TEST\.TASKS \('bbox',\)", {"tasks": ("segm",)}),
        (r"at least 1, and .* at least 0", {"tasks": ("bbox",), "max_detections": 0}),
        (r"at least 1, and .* at least 0", {"tasks": ("bbox",), "fixed_ap_detections": -1}),
        ("the same classes", {"tasks": ("bbox",), "train_counts": [1, 2]}),
    ):
        with pytest.raises(ConfigError, match=message):
            make_evaluator(store, **options)
    with pytest.raises(ConfigError, match=r"TEST\.METRICS: .*'voc'.* open_images, coco, lvis"):
        build_evaluators(str(store.path), metrics=["voc"])
    with pytest.raises(ConfigError, match=r"dataloader\.evaluator\.open_images: .*'iou'"):
        build_evaluators(str(store.path), metrics=["open_images"], open_images={"iou": 0.5})
    content = small_content()
    with_masks, outputs = make_lvis_store(content), make_outputs(content, [row(5, BOX, 0.5)])
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
