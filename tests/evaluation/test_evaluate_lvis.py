"""longtail-det2 evaluate-lvis: equal to the recorded numbers of lvis, a part of the images, bad files."""

import json
import math

import pytest
from lvis_cases import CASES, FIXED, GOLDEN, assert_equal, make_content, make_results

from longtail_det2.cli import main


@pytest.fixture
def command(tmp_path):
    def run(content, rows, *more):
        (tmp_path / "gt.json").write_text(json.dumps(content))
        (tmp_path / "results.json").write_text(json.dumps(rows))
        files = ["--annotations", tmp_path / "gt.json", "--results", tmp_path / "results.json"]
        status = main(["evaluate-lvis", *map(str, files), "--output", str(tmp_path / "ap.json"), *more])
        return json.loads((tmp_path / "ap.json").read_text()) if status == 0 else status

    return run


@pytest.mark.parametrize("case", CASES)
def test_equal_to_lvis(command, case):
    content = make_content(case)
    more = ("--task", "bbox", "segm", "--fixed", str(FIXED[case]))
    found = command(content, make_results(case, content), *more)
    for name, expected in json.loads(GOLDEN.read_text())[case].items():
        assert_equal({k: math.nan if v is None else v for k, v in found[name].items()}, expected)


def test_ground_truth_left_out_is_named(command, capsys):
    content = make_content("plain")
    rows = make_results("plain", content)
    expected = command(content, rows)
    assert not capsys.readouterr().err
    bad = {**content["annotations"][0], "id": 10**6, "image_id": 12345}
    assert command({**content, "annotations": [*content["annotations"], bad]}, rows) == expected
    assert "12345" in capsys.readouterr().err


def test_listed_images_alone(command, tmp_path):
    content = make_content("plain")
    rows = make_results("plain", content)
    ids = [one["id"] for one in content["images"]][::2]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    part = {**content, "images": content["images"][::2]}
    part["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    expected = command(part, [row for row in rows if row["image_id"] in ids])
    assert command(content, rows, "--images", str(tmp_path / "ids.txt")) == expected
    (tmp_path / "ids.txt").write_text("999999")
    assert command(content, rows, "--images", str(tmp_path / "ids.txt")) == 2


@pytest.mark.parametrize(
    "content", [[], {}, {"images": [3], "annotations": []}, {"images": [], "annotations": 3}]
)
def test_malformed_annotations_with_listed_images(command, tmp_path, capsys, content):
    (tmp_path / "ids.txt").write_text("")
    assert command(content, [], "--images", str(tmp_path / "ids.txt")) == 2
    assert "gt.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row.update(image_id=12345), "image_id"),
        (lambda row: row.update(category_id=12345), "category_id"),
        (lambda row: row.update(bbox=[0, 0, float("nan"), 1]), "bbox"),
        (lambda row: row.update(bbox=[0, 0, 1]), "malformed"),
        (lambda row: row.pop("score"), "score"),
    ],
)
def test_bad_results_are_named(command, capsys, change, named):
    content = make_content("plain")
    rows = make_results("plain", content)
    change(rows[7])
    assert command(content, rows) == 2
    error = capsys.readouterr().err
    assert "results.json: detection 7" in error and named in error


def test_a_missing_mask_is_named(command, capsys):
    content = make_content("plain")
    rows = make_results("plain", content)
    del rows[7]["segmentation"]
    assert command(content, rows, "--task", "segm") == 2
    assert "results.json: detection 7 has no segmentation" in capsys.readouterr().err
