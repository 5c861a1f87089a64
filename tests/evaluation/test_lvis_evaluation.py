"""LVIS's metric over a store, compared with the package `lvis` and with its recorded numbers."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from lvis_cases import (
    CASES,
    FIXED,
    GOLDEN,
    HIERARCHY,
    PARENTS,
    TASKS,
    assert_equal,
    best_of_each_class,
    evaluate,
    expanded,
    lvis_numbers,
    make_content,
    make_outputs,
    make_results,
)

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.evaluation.ground_truth import StoreGroundTruth


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_recorded_numbers_of_lvis(make_lvis_store, case, tmp_path):
    expected = json.loads(GOLDEN.read_text())[case]
    content = make_content(case)
    outputs = make_outputs(content, make_results(case, content))
    options = {"output_dir": tmp_path / "out", "fixed_ap_detections": FIXED[case]}
    results = evaluate(make_lvis_store(content), outputs, **options)
    assert list(results) == ["lvis_bbox", "lvis_bbox_fixed", "lvis_segm", "lvis_segm_fixed"]
    assert list(results["lvis_bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert list(results["lvis_segm_fixed"]) == ["AP", "APr", "APc", "APf"]
    for name, values in results.items():
        assert 1 < values["AP"] < 99
        assert_equal(values, expected[name])
    pytest.importorskip("lvis")
    rows = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)
    for task in TASKS:
        assert_equal(results[f"lvis_{task}"], lvis_numbers(content, rows, task))


def test_objects_of_several_labels_and_their_ancestors(make_lvis_store):
    """As lvis on a file in which all of that is spelt out."""
    pytest.importorskip("lvis")
    content = make_content("ties")
    rows = make_results("ties", content)
    above = [{**row, "category_id": PARENTS.get(row["category_id"])} for row in rows]
    rows += [row for row in above if row["category_id"]]
    rows.sort(key=lambda row: row["image_id"])
    store = make_lvis_store(content, HIERARCHY)
    results = evaluate(store, make_outputs(content, rows), fixed_ap_detections=40)
    for task in TASKS:
        assert_equal(results[f"lvis_{task}"], lvis_numbers(expanded(content), rows, task))
        fixed = best_of_each_class(rows, 40)
        assert_equal(results[f"lvis_{task}_fixed"], lvis_numbers(expanded(content), fixed, task, -1))
    without = lvis_numbers(content, rows, "bbox")["AP"]
    assert abs(results["lvis_bbox"]["AP"] - without) > 0.1


def test_photographs(shared_dir, tmp_path):
    """The file as it is: its polygons and areas."""
    pytest.importorskip("lvis")
    path = shared_dir / "data/photos/lvis/train.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    content = json.loads(path.read_text())
    known = {one["id"] for one in content["categories"]}  # the file speaks of others, too
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] in known]
    for image in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [one for one in image[key] if one in known]
    (tmp_path / "train.json").write_text(json.dumps(content))
    store = prepare_coco(tmp_path / "train.json", path.parents[1] / "images/train", tmp_path / "store")
    results = evaluate(store, make_outputs(content, moved_objects(content)), output_dir=tmp_path / "out")
    written = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    for task in TASKS:
        expected = lvis_numbers(content, written, task)
        assert_equal(results[f"lvis_{task}"], expected)
        assert 20 < expected["AP"] < 99 and expected["APf"] == -100


def moved_objects(content):
    """Three detections of each object, some pixels away."""
    rng = np.random.default_rng(0)
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    rows = []
    for one in content["annotations"] * 3:
        height, width = sizes[one["image_id"]]
        shift = rng.normal(0, 3, 2)
        parts = [np.array(part).reshape(-1, 2) + shift for part in one["segmentation"]]
        parts = [np.clip(part, 0, (width, height)).reshape(-1).tolist() for part in parts]
        runs = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
        box = (np.array(one["bbox"]) + rng.normal(0, 3, 4)).clip(0).tolist()
        rows.append({**one, "bbox": box, "score": rng.random(), "segmentation": runs})
    return rows


def whole_pixels(seed, count=30, height=300, width=417):
    """Boxes of whole pixels, and the same moved so that IoUs fall on thresholds."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": k, "file_name": f"{k}.png", "height": height, "width": width}
        | {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
        for k in range(1, count + 1)
    ]
    annotations, rows = [], []
    for number in range(8 * count):
        w, h = (int(side) for side in rng.integers(8, 60, 2))
        x, y = int(rng.integers(40, width - 120)), int(rng.integers(40, height - 120))
        one = {"image_id": number // 8 + 1, "category_id": int(rng.integers(1, 4))}
        annotations.append({**one, "id": number + 1, "bbox": [x, y, w, h], "area": w * h})
        for part in (1, 3, 5, 7):  # a box moved by a share of its side has an IoU of simple fractions
            score = float(np.float32(rng.random()))
            rows.append({**one, "bbox": [x + w * part // 20, y, w, h], "score": score})
    categories = [{"id": k, "name": str(k), "frequency": "rcf"[k - 1]} for k in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_whole_pixels(make_lvis_store, seed):
    """The store keeps shares of the sides; whether an IoU reaches a threshold must not depend on that."""
    pytest.importorskip("lvis")
    content, rows = whole_pixels(seed)
    results = evaluate(make_lvis_store(content), make_outputs(content, rows), tasks=("bbox",))["lvis_bbox"]
    expected = lvis_numbers(content, rows, "bbox")
    assert_equal(results, expected, 1e-9)
    assert 5 < expected["AP"] < 95


@pytest.mark.parametrize("decimals", [0, 1, 2])
@pytest.mark.parametrize("size", [(300, 417), (48, 64), (719, 1023)])
def test_boxes_are_restored(make_lvis_store, decimals, size):
    content, _ = whole_pixels(0, count=5)
    rng = np.random.default_rng(decimals)
    for image in content["images"]:
        image["height"], image["width"] = size
    for one in content["annotations"]:
        low = np.sort(rng.integers(0, [side * 10**decimals for side in size[::-1]], (2, 2)), axis=0)
        low[1] += 1
        corner, extent = low[0] / 10**decimals, (low[1] - low[0]) / 10**decimals
        one["bbox"] = [*corner.tolist(), *extent.tolist()]
    gt = StoreGroundTruth(make_lvis_store(content))
    written = sorted((*one["bbox"], one["image_id"]) for one in content["annotations"])
    image = gt.store.image_ids[gt.image].astype(int).tolist()
    assert sorted((*box, k) for box, k in zip(gt.box[gt.object].tolist(), image, strict=True)) == written
