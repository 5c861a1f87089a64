import json

import numpy as np
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
        assert found.image.tolist() == [1, 0] and found.cls.tolist() == [1, 4]
        np.testing.assert_allclose(found.score, [0.5, 0.25])
        np.testing.assert_allclose(found.box, [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]])
    assert caplog.text.count("1 predictions are of images") == 2


def test_no_results(store, tmp_path):
    assert len(read_predictions(write_json(tmp_path / "results.json", []), store)) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "expected a list"),
        ([{"image_id": "im0"}], "entry 0 is no COCO result"),
        ([{"image_id": "im0", "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}], "'9' is no class"),
        ([{"image_id": "im0", "category_id": "rc", "bbox": [0, 0, 1], "score": 1}], "entry 0 is no COCO"),
    ],
)
def test_errors_name_the_entry(store, tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_predictions(write_json(tmp_path / "results.json", rows), store)


def test_unreadable_files(store, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "absent.json", store)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(DataError, match="not JSON"):
        read_predictions(tmp_path / "bad.json", store)
