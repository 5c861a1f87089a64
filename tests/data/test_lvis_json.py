"""LVIS v1 JSON to a store: frequencies, files in URLs, ids with gaps, what was verified in each image."""

import copy
import itertools
import json

import pytest
from factories import write_images

from longtail_det2.data.datasets.coco import check_coco, prepare_coco
from longtail_det2.data.datasets.coco_checks import compact_segmentation, file_name_in_url
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.store import ImageLabel

URL = "http://images.cocodataset.org/"
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 20.5, 10.0, 20.5]


def image(key, name, absent=(), partly=()):
    one = {"id": key, "coco_url": URL + name, "height": 48, "width": 64}
    return {**one, "neg_category_ids": list(absent), "not_exhaustive_category_ids": list(partly)}


def annotation(key, on, category, box=(10, 10, 20, 10.5), polygons=(SQUARE,)):
    one = {"id": key, "image_id": on, "category_id": category, "bbox": list(box)}
    return {**one, "area": box[2] * box[3], "segmentation": list(polygons)}


CONTENT = {
    "info": {"description": "in the form of LVIS v1"},
    "licenses": [],
    "images": [
        image(391895, "train2017/000000391895.jpg", absent=[9], partly=[2]),
        image(522418, "train2017/000000522418.jpg", absent=[2, 9]),
        image(18380, "val2017/000000018380.jpg", partly=[9, 2]),
        image(184613, "train2017/000000184613.jpg", absent=[5]),
    ],
    "annotations": [
        annotation(1, 391895, 2),
        annotation(2, 391895, 5, (0, 0, 30, 30), [[0, 0, 30, 0, 30, 30, 0, 30]]),
        annotation(3, 391895, 5, (30, 20, 30, 20), [[30, 20, 60, 20, 60, 40], [30, 20, 30, 40, 60, 40]]),
        annotation(4, 18380, 2),
        annotation(5, 18380, 9, (0, 0, 8, 8), [[0, 0, 8, 0, 8, 8, 0, 8]]),
        annotation(6, 522418, 5, (0, 0, 8, 8), [[0, 0, 8, 0, 8, 8, 0, 8]]),
    ],
    "categories": [
        {"id": 9, "name": "zebra", "synset": "zebra.n.01", "frequency": "f", "image_count": 1674},
        {"id": 2, "name": "aerosol_can", "synset": "aerosol.n.02", "frequency": "c", "image_count": 64},
        {"id": 5, "name": "alligator", "synset": "alligator.n.02", "frequency": "r", "image_count": 6},
    ],
}


@pytest.fixture
def images(tmp_path):
    names = [{**one, "file_name": one["coco_url"].removeprefix(URL)} for one in CONTENT["images"]]
    write_images(tmp_path / "coco", {"images": names})
    return tmp_path / "coco"


@pytest.fixture
def write(tmp_path):
    def run(content):
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(content))
        return path

    return run


@pytest.fixture
def prepare(tmp_path, images, write):
    def run(content=CONTENT, name="store", hierarchy=None, **options):
        return prepare_coco(write(content), images, tmp_path / name, hierarchy, **options)

    return run


def test_store(prepare, images):
    store = prepare()
    assert store.class_ids == ("2", "5", "9") and store.class_names == ("aerosol_can", "alligator", "zebra")
    assert store.class_frequencies == ("c", "r", "f")
    assert not store.has_hierarchy and store.has_masks and store.num_objects == 6
    ids = [one.decode() for one in store.image_ids]
    assert ids == ["18380", "184613", "391895", "522418"]
    assert store.file_names[0] == b"val2017/000000018380.jpg"
    said = {}
    for one, (first, last) in zip(ids, itertools.pairwise(store.image_label_offsets), strict=True):
        labels = store.image_labels[first:last].tolist()
        said[one] = dict(zip(labels, store.image_label_status[first:last].tolist(), strict=True))
    absent, partly = ImageLabel.ABSENT, ImageLabel.NOT_EXHAUSTIVE
    assert said == {
        "18380": {2: partly, 0: partly},
        "184613": {1: absent},
        "391895": {2: absent, 0: partly},
        "522418": {0: absent, 2: absent},
    }
    records = {record["image_id"]: record for record in MultiLabelDataset(store)}
    one = records["391895"]
    assert one["file_name"] == str(images / "train2017" / "000000391895.jpg")
    assert one["pos_category_ids"] == [0] and one["neg_category_ids"] == [2]
    assert records["522418"]["pos_category_ids"] == []
    parts = {len(item["segmentation"]) for item in one["annotations"] if item["category_id"] == 1}
    assert parts == {1, 2} and records["184613"]["annotations"] == []


def test_report_with_and_without_frequencies(write, images, prepare):
    report = check_coco(write(CONTENT), images)
    assert report.issues.counts() == {"empty_image": 1}
    numbers = {"objects_with_mask": 6, "labels_verified_absent": 4, "labels_not_exhaustive": 3}
    assert {**numbers, "rare_classes": 1, "frequent_classes": 1}.items() <= report.summary.items()
    assert report.text().splitlines()[-1].startswith("  warning  ")
    content = copy.deepcopy(CONTENT)
    for one in content["categories"]:
        del one["frequency"]
    assert prepare(content).class_frequencies is None
    assert check_coco(write(content), images).issues.counts() == {"empty_image": 1}


def test_frequencies_and_a_hierarchy(prepare, tmp_path, write, images):
    path = tmp_path / "hierarchy.json"
    path.write_text('{"alligator": ["aerosol_can"]}')
    assert prepare(hierarchy=path).class_frequencies == ("c", "r", "f")
    path.write_text('{"alligator": ["reptile"], "reptile": ["animal"], "zebra": ["animal"]}')
    store = prepare(hierarchy=path)
    assert store.class_ids[-2:] == ("reptile", "animal")
    assert store.class_frequencies == ("c", "r", "f", "r", "f")  # as the most frequent one below


def test_file_names_in_urls():
    names = {
        URL + "train2017/000000391895.jpg": "train2017/000000391895.jpg",
        "https://host/a/b/c.jpg?size=big#x": "b/c.jpg",
        "images/validation/7.png": "validation/7.png",
        "7.png": "7.png",
        **dict.fromkeys((URL, "", "//[", None, 17), ""),
    }
    assert {url: file_name_in_url(url) for url in names} == names


def test_file_name_goes_before_the_url(prepare, images):
    content = copy.deepcopy(CONTENT)
    content["images"][2]["file_name"] = "train2017/000000391895.jpg"
    assert prepare(content).file_names[0] == b"train2017/000000391895.jpg"


def test_polygons_are_held_as_arrays_and_anything_else_as_it_is():
    text = '{"segmentation": [[1, 2.5, 3], []], "other": [[1, 2]]}'
    entry = json.loads(text, object_hook=compact_segmentation)
    assert entry["segmentation"][0].typecode == "d" and entry["segmentation"][0].tolist() == [1, 2.5, 3]
    assert entry["segmentation"][1] == [] and entry["other"] == [[1, 2]]
    for value in ([["a"]], [[None]], [[10**400]], "text", {"counts": "x"}, None, [3], [[[1, 2]]]):
        assert compact_segmentation({"segmentation": value}) == {"segmentation": value}
