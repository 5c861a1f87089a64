import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.predictions import read_predictions


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_coco_results_and_csv_agree(store, tmp_path, caplog):
    rows = [
        {"image_id": "im1", "category_id": "gc", "bbox": [16, 12, 32, 24], "score": 0.5},
        {"image_id": "elsewhere", "category_id": "gc", "bbox": [0, 0, 1, 1], "score": 0.5},
        {"image_id": "im0", "category_id": "red", "bbox": [0, 0, 64, 48], "score": 0.25},
    ]
    csv = tmp_path / "predictions.csv"
    csv.write_text(
        "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n"
        "im1,gc,0.5,0.25,0.75,0.25,0.75\nelsewhere,gc,0.5,0,1,0,1\nim0,red,0.25,0,1,0,1\n"
    )
    for path in (write_json(tmp_path / "results.json", rows), csv):
        found = read_predictions(path, store)
        assert found.image.tolist() == [0, 1] and found.cls.tolist() == [4, 1]
        np.testing.assert_allclose(found.score, [0.25, 0.5])
        np.testing.assert_allclose(found.box, [[0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]])
    assert caplog.text.count("1 predictions are of images") == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "a list of detections"),
        ([{"image_id": "im0"}], "detection 0 is malf"),
        (
            [{"image_id": "im0", "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}],
            "category_id is",
        ),
        (
            [{"image_id": "im0", "category_id": "rc", "bbox": [0, 0, 1], "score": 1}],
            "detection 0 is malf",
        ),
    ],
)
def test_errors_name_the_entry(store, tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_predictions(write_json(tmp_path / "results.json", rows), store)


def result(image, **more):
    return {"image_id": image, "category_id": "rc", "bbox": [0, 0, 32, 24], "score": 0.5, **more}


def runs_of(mask):
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def test_masks_stay_with_their_detections(store, tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random((48, 64)) < 0.5 for _ in range(3)]
    rows = [
        result("im1", segmentation=runs_of(masks[0]), score=0.9),
        result("elsewhere", segmentation={"size": [1, 1], "counts": "01"}),
        result("im0", segmentation=runs_of(masks[1]), score=0.8),
        result("im1", segmentation=runs_of(masks[2]), score=0.1),
        result("im1", score=0.7),
        result("im1", segmentation=None, score=0.6),
    ]
    found = read_predictions(write_json(tmp_path / "results.json", rows), store)
    assert len(found) == 5
    one = found.above(0.2).of_image(1)
    assert one.score.tolist() == [0.9, 0.7, 0.6]
    assert (one.mask_of(0) == masks[0]).all() and one.mask_of(1) is None and one.mask_of(2) is None
    assert (found.of_image(0).mask_of(0) == masks[1]).all()
    assert len(found.of_image(3)) == 0


@pytest.mark.parametrize("mask", [[[1, 2, 3, 4, 5, 6]], {"size": [64, 48], "counts": "0"}, {"size": {}}])
def test_masks_of_another_form_name_the_entry(store, tmp_path, mask):
    path = write_json(tmp_path / "results.json", [result("im0"), result("im0", segmentation=mask)])
    with pytest.raises(DataError, match=r"results\.json: detection 1 is malformed .segmentation is not RLE"):
        read_predictions(path, store)


@pytest.mark.parametrize("counts", ["", "04", "0" * 5000, "~", "\ud800", "\0", "oooooooo0", "0O"])
def test_damaged_counts_name_the_entry_when_they_are_drawn(store, tmp_path, counts):
    mask = {"size": [48, 64], "counts": counts}
    path = write_json(
        tmp_path / "results.json", [result("elsewhere"), result("im0"), result("im0", segmentation=mask)]
    )
    found = read_predictions(path, store)
    with pytest.raises(DataError, match=r"results\.json: entry 2 has a segmentation"):
        found.of_image(0).mask_of(1)
