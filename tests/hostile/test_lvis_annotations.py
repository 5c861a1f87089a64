"""LVIS files that are wrong: the message names the entry; no store is left."""

import copy
import json
import shutil

import pytest

from longtail_det2.data.datasets.coco import check_coco, prepare_coco
from longtail_det2.utils.errors import DataError

URL = "http://images.cocodataset.org/train2017/"
LVIS = {
    "images": [
        {"id": key, "coco_url": f"{URL}{name}.jpg", "width": 64, "height": 48}
        | {"neg_category_ids": absent, "not_exhaustive_category_ids": partly}
        for key, name, absent, partly in ((1, "a", [7], [3]), (2, "b", [], []), (3, "c", [3, 4], []))
    ],
    "annotations": [
        {"id": key, "image_id": image, "category_id": category, "bbox": [x, 4, 16, 8], "area": 128.0}
        | {"segmentation": [[x, 4, x + 16, 4, x + 16, 12, x, 12]]}
        for key, image, category, x in ((1, 1, 3, 8), (2, 1, 4, 30), (3, 2, 7, 8))
    ],
    "categories": [
        {"id": 3, "name": "acorn", "frequency": "r"},
        {"id": 4, "name": "barge", "frequency": "c"},
        {"id": 7, "name": "cat", "frequency": "f"},
    ],
}


@pytest.fixture
def lvis(data):
    """The folder of `data` with the images below train2017."""
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


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (spoil("categories", 1, frequency="x"), r"category 4 \('barge'\) has the frequency 'x'"),
        (spoil("categories", 1, frequency=["r"]), r"category 4 \('barge'\) has the frequency \['r'\]"),
        (spoil("categories", 1, frequency=17), r"category 4 \('barge'\) has the frequency 17"),
        (spoil("categories", 2, frequency=None), r"category 7 \('cat'\) has no frequency"),
        (spoil("images", 1, coco_url=None), "image 2 has the file_name None"),
        (spoil("images", 1, coco_url=7), "image 2 has the file_name 7"),
        (spoil("images", 1, coco_url=URL), "image 2 has the file_name 'http"),
        (spoil("images", 1, coco_url="http://[/x"), "image 2 has the file_name"),
        (spoil("images", 1, coco_url=URL + "\0.jpg"), "image 2 has the file_name"),
        (spoil("images", 1, coco_url=URL + "nope.jpg"), r"train2017/nope\.jpg.*--skip-bad"),
        (spoil("images", 0, neg_category_ids=[7, 99]), "image 1, neg_category_ids .*99; .*--skip-bad"),
        (spoil("images", 0, not_exhaustive_category_ids=[True]), "not_exhaustive_category_ids"),
        (spoil("images", 0, neg_category_ids=7), "image 1, neg_category_ids"),
    ],
)
def test_entries(lvis, content, named):
    with pytest.raises(DataError, match=r"lvis\.json: .*" + named) as caught:
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
