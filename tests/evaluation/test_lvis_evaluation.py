"""LVIS's metric over a store, compared with the package `lvis` and with its recorded numbers."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from lvis_cases import (
    CASES,
    FIXED,
    GOLDEN,
    TASKS,
    assert_equal,
    best_of_each_class,
    evaluate,
    instances_of,
    lvis_numbers,
    make_content,
    make_outputs,
    make_results,
)

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.evaluation.ground_truth import StoreGroundTruth


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_recorded_numbers_of_lvis(make_lvis_store, case):
    expected = json.loads(GOLDEN.read_text())[case]
    content = make_content(case)
    outputs = make_outputs(content, make_results(case, content))
    results = evaluate(make_lvis_store(content), outputs, fixed_ap_detections=FIXED[case])
    assert list(results) == ["lvis_bbox", "lvis_bbox_fixed", "lvis_segm", "lvis_segm_fixed"]
    assert list(results["lvis_bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert list(results["lvis_segm_fixed"]) == ["AP", "APr", "APc", "APf"]
    for name, values in results.items():
        assert 1 < values["AP"] < 99
        assert_equal(values, expected[name])


@pytest.mark.parametrize("case", CASES)
def test_equal_to_lvis_itself(make_lvis_store, case, tmp_path):
    """The same from the detections that the evaluator wrote."""
    pytest.importorskip("lvis")
    content = make_content(case)
    outputs = make_outputs(content, make_results(case, content))
    results = evaluate(
        make_lvis_store(content), outputs, output_dir=tmp_path / "out", fixed_ap_detections=FIXED[case]
    )
    rows = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)
    for task in TASKS:
        assert_equal(results[f"lvis_{task}"], lvis_numbers(content, rows, task))
        fixed = best_of_each_class(rows, FIXED[case])
        assert_equal(results[f"lvis_{task}_fixed"], lvis_numbers(content, fixed, task, -1))


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
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    store = prepare_coco(tmp_path / "train.json", path.parents[1] / "images/train", tmp_path / "store")
    outputs = photograph_outputs(content, moved_objects(content, sizes))
    results = evaluate(store, outputs, output_dir=tmp_path / "out")
    written = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    for task in TASKS:
        expected = lvis_numbers(content, written, task)
        assert_equal(results[f"lvis_{task}"], expected)
        assert 20 < expected["AP"] < 99 and expected["APf"] == -100


def moved_objects(content, sizes):
    """Three detections of each object, some pixels away."""
    rng = np.random.default_rng(0)
    rows = []
    for one in content["annotations"] * 3:
        height, width = sizes[one["image_id"]]
        shift = rng.normal(0, 3, 2)
        parts = [np.array(part).reshape(-1, 2) + shift for part in one["segmentation"]]
        parts = [np.clip(part, 0, (width, height)).reshape(-1).tolist() for part in parts]
        runs = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
        row = {"image_id": one["image_id"], "category_id": one["category_id"], "score": rng.random()}
        row["bbox"] = (np.array(one["bbox"]) + rng.normal(0, 3, 4)).clip(0).tolist()
        rows.append({**row, "segmentation": runs})
    return rows


def photograph_outputs(content, rows):
    categories = sorted(content["categories"], key=lambda one: one["id"])
    index = {one["id"]: place for place, one in enumerate(categories)}
    outputs = []
    for image in content["images"]:
        found = [row for row in rows if row["image_id"] == image["id"]]
        instances = instances_of(found, index, (image["height"], image["width"]))
        outputs.append(({"image_id": str(image["id"])}, {"instances": instances}))
    return outputs


def whole_pixels(seed, decimals=0, count=30, height=300, width=417):
    """Boxes of whole pixels (or decimals), and the same moved so that IoUs fall on thresholds."""
    rng = np.random.default_rng(seed)
    scale = 10**decimals
    images = [
        {"id": k, "file_name": f"{k}.png", "height": height, "width": width}
        | {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
        for k in range(1, count + 1)
    ]
    annotations, rows = [], []
    for image in images:
        for _ in range(8):
            w, h = (int(side) for side in rng.integers(8, 60, 2))
            x, y = int(rng.integers(40, width - 120)), int(rng.integers(40, height - 120))
            offset = (rng.integers(0, scale, 4) / scale).tolist()
            box = [value + part for value, part in zip((x, y, w, h), offset, strict=True)]
            one = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(rng.integers(1, 4)),
            }
            annotations.append({**one, "bbox": box, "area": box[2] * box[3]})
            for part in (1, 3, 5, 7):  # a box moved by a share of its side has an IoU of simple fractions
                moved = [box[0] + w * part // 20, box[1], box[2], box[3]]
                score = float(np.float32(rng.random()))
                rows.append({**one, "bbox": moved, "score": score})
    categories = [
        {"id": k, "name": str(k), "synset": f"c{k}.n.01", "frequency": "rcf"[k - 1]} for k in (1, 2, 3)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def outputs_without_masks(content, rows, height=300, width=417):
    index = {one["id"]: place for place, one in enumerate(content["categories"])}
    empty = {
        "size": [height, width],
        "counts": coco_mask.encode(np.zeros((height, width), np.uint8, "F"))["counts"],
    }
    outputs = []
    for image in content["images"]:
        found = [{**row, "segmentation": empty} for row in rows if row["image_id"] == image["id"]]
        outputs.append(
            ({"image_id": str(image["id"])}, {"instances": instances_of(found, index, (height, width))})
        )
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_whole_pixels(make_lvis_store, seed):
    """The store keeps shares of the sides; whether an IoU reaches a threshold must not depend on that."""
    pytest.importorskip("lvis")
    content, rows = whole_pixels(seed)
    results = evaluate(make_lvis_store(content), outputs_without_masks(content, rows), tasks=("bbox",))[
        "lvis_bbox"
    ]
    expected = lvis_numbers(content, rows, "bbox")
    assert_equal(results, expected, 1e-9)
    assert 5 < expected["AP"] < 95


@pytest.mark.parametrize("decimals", [0, 1, 2])
@pytest.mark.parametrize("size", [(300, 417), (48, 64), (719, 1023)])
def test_boxes_are_restored(make_lvis_store, decimals, size):
    content, _ = whole_pixels(0, decimals, count=5)
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
