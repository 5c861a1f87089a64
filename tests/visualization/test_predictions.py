import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.predictions import read_predictions, write_predictions


@pytest.fixture
def read(store, tmp_path):
    """Reads results that are written to a file before."""

    def read(*rows):
        (tmp_path / "results.json").write_text(json.dumps(rows))
        return read_predictions(tmp_path / "results.json", store)

    return read


def result(image, **more):
    return {"image_id": image, "category_id": "rc", "bbox": [0, 0, 32, 24], "score": 0.5, **more}


def runs_of(mask):
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def test_coco_results_and_csv_agree(store, read, tmp_path, caplog):
    csv = tmp_path / "predictions.csv"
    csv.write_text(
        "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n"
        "im1,gc,0.5,0.25,0.75,0.25,0.75\nelsewhere,gc,0.5,0,1,0,1\nim0,red,0.25,0,1,0,1\n"
    )
    other = result("elsewhere", segmentation={"size": [1, 1], "counts": "01"})
    rows = [result("im1", category_id="gc", bbox=[16, 12, 32, 24]), other]
    rows.append(result("im0", category_id="red", bbox=[0, 0, 64, 48], score=0.25))
    for found in (read(*rows), read_predictions(csv, store)):
        assert found.image.tolist() == [0, 1] and found.cls.tolist() == [4, 1]
        np.testing.assert_allclose(found.score, [0.25, 0.5])
        np.testing.assert_allclose(found.box, [[0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]])
    assert caplog.text.count("1 predictions are of images") == 2
    assert len(read()) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"category_id": 9},
        {"bbox": [0, 0, 1]},
        {"bbox": None},
        {"score": float("nan")},
        {"segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"segmentation": {"size": [64, 48], "counts": "0"}},
        {"segmentation": {"size": {}}},
    ],
)
def test_errors_name_the_detection(read, change):
    with pytest.raises(DataError, match=rf"results\.json: detection 1 is malformed .*{next(iter(change))}"):
        read(result("im0"), result("im0", **change))


def test_a_file_that_is_no_list(store, tmp_path):
    write_predictions(tmp_path / "results.json", [])
    assert len(read_predictions(tmp_path / "results.json", store)) == 0
    (tmp_path / "results.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="a list of detections"):
        read_predictions(tmp_path / "results.json", store)
    with pytest.raises(DataError, match="cannot be written"):
        write_predictions(tmp_path / "results.json" / "more.json", [])


def test_masks_stay_with_their_detections(read):
    masks = [np.random.default_rng(seed).random((48, 64)) < 0.5 for seed in range(3)]
    found = read(
        result("im1", segmentation=runs_of(masks[0]), score=0.9),
        result("im0", segmentation=runs_of(masks[1]), score=0.8),
        result("im1", segmentation=runs_of(masks[2]), score=0.1),
        result("im1", score=0.7),
        result("im1", segmentation=None, score=0.6),
    )
    one = found.above(0.2).of_image(1)
    assert one.score.tolist() == [0.9, 0.7, 0.6]
    assert (one.mask_of(0) == masks[0]).all() and one.mask_of(1) is None and one.mask_of(2) is None
    assert (found.of_image(0).mask_of(0) == masks[1]).all()
    assert len(found.of_image(3)) == 0


@pytest.mark.parametrize("counts", ["", "04", "0" * 5000, "~", "\ud800", "\0", "oooooooo0", "0O"])
def test_damaged_counts_name_the_detection_when_they_are_drawn(read, counts):
    rows = (
        result("elsewhere"),
        result("im0"),
        result("im0", segmentation={"size": [48, 64], "counts": counts}),
    )
    with pytest.raises(DataError, match=r"results\.json: detection 2 has a segmentation"):
        read(*rows).of_image(0).mask_of(1)
