"""LVIS files that are wrong: the message names the entry and says what to do; no store is left."""

import copy
import json
import shutil

import pytest

from longtail_det2.data.datasets.coco import check_coco, prepare_coco
from longtail_det2.utils.errors import DataError

URL = "http://images.cocodataset.org/train2017/"
LVIS = {
    "images": [
        {
            "id": key,
            "coco_url": f"{URL}{name}.jpg",
            "width": 64,
            "height": 48,
            "neg_category_ids": absent,
            "not_exhaustive_category_ids": partly,
        }
        for key, name, absent, partly in ((1, "a", [7], [3]), (2, "b", [], []), (3, "c", [3, 4], []))
    ],
    "annotations": [
        {
            "id": key,
            "image_id": on,
            "category_id": category,
            "bbox": [8, 4, 16, 8],
            "area": 128.0,
            "segmentation": [[8, 4, 24, 4, 24, 12, 8, 12]],
        }
        for key, on, category in ((1, 1, 3), (2, 1, 4), (3, 2, 7))
    ],
    "categories": [
        {"id": 3, "name": "acorn", "frequency": "r"},
        {"id": 4, "name": "barge", "frequency": "c"},
        {"id": 7, "name": "cat", "frequency": "f"},
    ],
}
LVIS["annotations"][1]["bbox"] = [30, 10, 10, 10]
LVIS["annotations"][1]["segmentation"] = [[30, 10, 40, 10, 40, 20]]


@pytest.fixture
def lvis(data):
    """The folder of `data` with the pictures below train2017, and functions to write and prepare."""
    folder = data.root / "coco"
    (folder / "train2017").mkdir(parents=True)
    for path in data.images.iterdir():
        shutil.copy(path, folder / "train2017" / path.name)
    data.images, data.coco = folder, data.write("lvis.json", json.dumps(LVIS))
    return data


def prepare(lvis, content, **options):
    lvis.write("lvis.json", json.dumps(content))
    return prepare_coco(lvis.coco, lvis.images, lvis.root / "store", **options)


def spoil(part, index, **values):
    content = copy.deepcopy(LVIS)
    content[part][index].update(values)
    return content


def without(part, index, key):
    content = copy.deepcopy(LVIS)
    del content[part][index][key]
    return content


def test_the_sound_file(lvis):
    store = prepare(lvis, LVIS)
    assert store.num_objects == 3 and store.class_frequencies == ("r", "c", "f")
    assert store.image_label_status.tolist() == [0, 2, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            spoil("categories", 1, frequency="x"),
            r"category 4 \('barge'\) has the frequency 'x'; correct them, or leave all out",
        ),
        (spoil("categories", 1, frequency=["r"]), r"category 4 \('barge'\) has the frequency \['r'\]"),
        (spoil("categories", 1, frequency="rare"), r"category 4 \('barge'\) has the frequency 'rare'"),
        (spoil("categories", 1, frequency=17), r"category 4 \('barge'\) has the frequency 17"),
        (without("categories", 2, "frequency"), r"category 7 \('cat'\) has no frequency, but others have"),
        (spoil("categories", 2, frequency=None), r"category 7 \('cat'\) has no frequency, but others have"),
        (without("images", 1, "coco_url"), r"image 2 has the file_name None"),
        (spoil("images", 1, coco_url=7), r"image 2 has the file_name 7"),
        (spoil("images", 1, coco_url=URL), r"image 2 has the file_name 'http"),
        (spoil("images", 1, coco_url="http://[/x"), r"image 2 has the file_name"),
        (spoil("images", 1, coco_url=URL + "\0.jpg"), r"image 2 has the file_name"),
        (
            spoil("images", 1, coco_url=URL + "nope.jpg"),
            r"train2017/nope\.jpg: cannot read the image \(No such file.*--skip-bad",
        ),
        (
            spoil("images", 0, neg_category_ids=[7, 99]),
            r"image 1, neg_category_ids has the unknown category 99; .*--skip-bad",
        ),
        (
            spoil("images", 0, not_exhaustive_category_ids=[True]),
            r"not_exhaustive_category_ids has the unknown",
        ),
        (spoil("images", 0, neg_category_ids=7), r"image 1, neg_category_ids: category ids must be a list"),
        (spoil("annotations", 0, category_id=5), r"annotation 1 has the unknown category 5; .*skip-bad"),
        (
            spoil("annotations", 0, segmentation=[[8, 4, 24, 4, 24, 12], []]),
            r"annotation 1 has a segmentation with a polygon of 0 numbers; .*--skip-bad",
        ),
        (spoil("annotations", 0, segmentation=[[8, 4, 24, 4]]), r"with a polygon of 4 numbers"),
        (spoil("annotations", 0, segmentation=[[8, 4, 24, 4, 24, 12, 8]]), r"with a polygon of 7 numbers"),
        (spoil("annotations", 0, segmentation=[[8, 4, 24, 4, 16, 4]]), r"without area inside its image"),
        (
            spoil("annotations", 0, segmentation=[[70, 50, 90, 50, 90, 60]]),
            r"has a segmentation without area inside its image",
        ),
        (
            spoil("annotations", 0, segmentation=[[8, 4, 24, "x", 24, 12]]),
            r"polygon of something else than numbers",
        ),
        (spoil("annotations", 0, segmentation=[[8, 4, 24, 10**400, 24, 12]]), r"something else than numbers"),
        (
            spoil("annotations", 0, segmentation=[[8, 4, 24, float("nan"), 24, 12]]),
            r"a coordinate that is not finite",
        ),
        (spoil("annotations", 0, segmentation="polygon"), r"neither a list of polygons nor RLE"),
        (spoil("annotations", 0, segmentation=[8, 4, 24, 4, 24, 12]), r"neither a list of polygons"),
        (spoil("annotations", 0, bbox=[8, 4, 0, 8]), r"annotation 1 has the box .*area inside the image"),
        (spoil("annotations", 0, image_id=4), r"annotation 1 is on the unknown image 4"),
        (spoil("annotations", 1, id=1), r"annotation id 1 occurs twice"),
    ],
)
def test_entries(lvis, content, message):
    with pytest.raises(DataError, match=r"lvis\.json: .*" + message) as caught:
        prepare(lvis, content)
    assert "\n" not in str(caught.value)
    assert not (lvis.root / "store").exists() and not lvis.left_over()


def test_what_may_be_left_out_is_counted(lvis):
    content = copy.deepcopy(LVIS)
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["segmentation"] = [[8, 4, 24, 4]]
    content["images"][0]["neg_category_ids"] = [7, 98]
    content["images"][0]["not_exhaustive_category_ids"] = [98]
    content["images"][1]["coco_url"] = URL + "nope.jpg"
    lvis.write("lvis.json", json.dumps(content))
    report = check_coco(lvis.coco, lvis.images, skip_bad=True)
    assert not report.issues.errors
    wrong = {kind: report.issues.count(kind) for kind in ("unknown_category", "mask", "image_file")}
    assert wrong == {"unknown_category": 3, "mask": 1, "image_file": 1}
    store = prepare(lvis, content, skip_bad=True)
    summary = store.header["summary"]
    assert summary["annotations"] == 3 and summary["images_left_out"] == 1
    assert (store.num_objects, summary["objects_with_mask"]) == (1, 0)
    assert store.image_label_status.tolist() == [0, 0, 0]


@pytest.mark.parametrize("segmentation", [[], [[]], None])
def test_an_object_without_a_mask_is_kept(lvis, segmentation):
    store = prepare(lvis, spoil("annotations", 0, segmentation=segmentation))
    assert store.num_objects == 3 and store.header["summary"]["objects_with_mask"] == 2


def test_a_file_that_is_cut(lvis):
    text = json.dumps(LVIS)
    lvis.write("lvis.json", text[: len(text) // 2])
    with pytest.raises(DataError, match=r"lvis\.json: not a JSON file, or only a part of one"):
        prepare_coco(lvis.coco, lvis.images, lvis.root / "store")
