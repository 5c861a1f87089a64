import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from factories import json_store, write_images

from longtail_det2.cli import main
from longtail_det2.data.datasets.builtin import CocoEntry, register_datasets, register_store
from longtail_det2.data.datasets.coco import check_coco
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import HierarchyError
from longtail_det2.data.store import ObjectFlag
from longtail_det2.utils.errors import DataError

CONTENT = {
    "images": [
        {"id": 9, "file_name": "nine.png", "height": 40, "width": 80, "neg_category_ids": [30]},
        {"id": 10, "file_name": "sub/ten.png", "height": 20, "width": 20, "not_exhaustive_category_ids": [7]},
        {"id": 2, "file_name": "two.png", "height": 20, "width": 20, "pos_category_ids": [5]},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 5, "bbox": [8, 4, 16, 8]},
        {"id": 2, "image_id": 9, "category_id": 7, "bbox": [8, 4, 16, 8], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 30, "category_ids": [30, 5], "bbox": [0, 0, 80, 40]},
        {"id": 4, "image_id": 10, "category_ids": [7], "bbox": [1.5, 1.5, 4, 4], "iscrowd": 1},
        {"id": 5, "image_id": 9, "category_id": 5, "bbox": [70, 30, 20, 20]},
    ],
    "categories": [{"id": 30, "name": "car"}, {"id": 5, "name": "animal"}, {"id": 7, "name": "dog"}],
}


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", CONTENT)
    return tmp_path / "images"


@pytest.fixture
def prepare(tmp_path, images):
    def run(content=CONTENT, hierarchy=None, image_root=images, **options):
        return json_store(tmp_path, content, hierarchy, "data", image_root, **options)

    return run


def test_store(prepare, images):
    store = prepare(hierarchy={"dog": ["animal"]}, merge_equal_boxes=True)
    assert store.class_ids == ("5", "7", "30") and store.class_names == ("animal", "dog", "car")
    assert store.hierarchy.to_parents() == {"7": ["5"]}
    assert store.image_ids.tolist() == [b"10", b"2", b"9"]  # ascending as bytes
    records = {record["image_id"]: record for record in MultiLabelDataset(store)}
    nine = records["9"]
    assert nine["file_name"] == str(images / "nine.png") and (nine["height"], nine["width"]) == (40, 80)
    objects = {tuple(np.round(one["bbox"], 3)): one for one in nine["annotations"]}
    assert set(objects) == {(0, 0, 80, 40), (8, 4, 24, 12), (70, 30, 80, 40)}  # the last one clipped
    assert objects[(8, 4, 24, 12)]["category_ids"] == [1, 0]  # equal boxes merge, most specific first
    assert sorted(objects[(0, 0, 80, 40)]["category_ids"]) == [0, 2]
    assert nine["neg_category_ids"] == [2] and records["2"]["pos_category_ids"] == [0]
    assert records["10"]["pos_category_ids"] == [1]
    group = records["10"]["annotations"][0]
    assert group["is_group_of"] and group["iscrowd"] == 0 and group["category_ids"] == [1]
    assert store.flags.tolist().count(int(ObjectFlag.GROUP_OF)) == 1
    assert [source["role"] for source in store.header["sources"]] == ["coco", "hierarchy"]


def test_equal_boxes_are_objects_of_their_own(prepare, tmp_path, images):
    store = prepare()
    assert store.num_objects == 5 and store.form == "coco"
    report = check_coco(tmp_path / "data.json", images)
    assert report.issues.count("equal_boxes") == 1
    labels = [one["category_ids"] for record in MultiLabelDataset(store) for one in record["annotations"]]
    assert sorted(map(sorted, labels)) == [[0], [0], [0, 2], [1], [1]]
    assert check_coco(tmp_path / "data.json", images, merge_equal_boxes=True).issues.count("equal_boxes") == 0
    content = copy.deepcopy(CONTENT)
    content["annotations"][1]["iscrowd"] = 1  # a group and an object stay apart
    assert prepare(content, merge_equal_boxes=True).num_objects == 5


def test_hierarchy_by_id_and_as_a_tree(prepare):
    assert prepare(hierarchy={"7": ["5"]}).hierarchy.to_parents() == {"7": ["5"]}
    pet = {"LabelName": "pet", "Subcategory": [{"LabelName": "dog"}]}
    animal = {"LabelName": "animal", "Subcategory": [pet]}
    tree = {"LabelName": "root", "Subcategory": [animal, {"LabelName": "plant"}]}
    with pytest.raises(HierarchyError, match=r"hierarchy\.json: 1 of 3 categories are not in the tree.*'30'"):
        prepare(hierarchy=tree)
    store = prepare(hierarchy=tree, skip_bad=True)
    assert store.class_ids == ("5", "7", "30", "pet")
    assert store.hierarchy.to_parents() == {"7": ["pet"], "pet": ["5"]}
    assert not prepare().has_hierarchy
    content = copy.deepcopy(CONTENT)
    content["categories"][0]["name"] = "dog"
    with pytest.raises(HierarchyError, match="several categories are called 'dog'"):
        prepare(content, hierarchy={"dog": ["animal"]})


def test_sizes_come_from_the_files_where_they_are_not_given(prepare, images):
    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        del image["height"], image["width"]
    assert prepare(content).image_sizes.tolist() == [[20, 20], [20, 20], [40, 80]]
    with pytest.raises(DataError, match="image '10' has no height and width"):
        prepare(content, image_root=None)
    store = prepare(image_root=None)
    assert store.image_root is None and len(MultiLabelDataset(store, image_root=images)) == 3


def as_pandas_writes(content):
    """Ids and sizes as floats."""
    for part, keys in (("images", ("id", "width", "height")), ("annotations", ("id", "image_id"))):
        for one in content[part]:
            one.update({key: float(one[key]) for key in keys})
    content["annotations"][0]["category_id"] = 5.0
    content["annotations"][1]["iscrowd"] = 0.0


def as_text(content):
    """Ids of the images as text where annotations have numbers."""
    for one in content["images"]:
        one["id"] = str(one["id"])
    content["categories"][0]["id"] = "30"


@pytest.mark.parametrize("edit", [as_pandas_writes, as_text])
def test_ids_and_numbers_as_other_tools_write_them(prepare, edit):
    expected = prepare()
    columns = expected.image_ids.copy(), expected.boxes.copy(), expected.labels.copy()
    content = copy.deepcopy(CONTENT)
    edit(content)
    store = prepare(content)
    assert store.class_ids == expected.class_ids
    for one, other in zip((store.image_ids, store.boxes, store.labels), columns, strict=True):
        np.testing.assert_array_equal(one, other)


def test_absolute_file_names_below_the_image_folder(prepare, images):
    content = copy.deepcopy(CONTENT)
    content["images"][1]["file_name"] = str(images / "sub" / "ten.png")
    assert prepare(content).file_names.tolist() == [b"sub/ten.png", b"two.png", b"nine.png"]


def test_nothing_is_left(prepare, images, tmp_path):
    assert prepare({**CONTENT, "annotations": []}).num_objects == 0
    for path in images.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="no sound image"):
        prepare(skip_bad=True)
    with pytest.raises(DataError, match=r"cannot read the image .*3 image files"):
        check_coco(tmp_path / "data.json", images)


def test_command(tmp_path, images, capsys):
    """With a byte order mark, which some editors leave."""
    (tmp_path / "data.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONTENT).encode())
    command = ["prepare", "coco", "--json", str(tmp_path / "data.json"), "--images", str(images)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "3 images, 5 objects" in capsys.readouterr().out.splitlines()[-1]


def test_parents_that_are_no_categories_become_classes(prepare, tmp_path, images):
    store = prepare(hierarchy={"dog": ["pet"], "pet": ["living thing"], "animal": ["living thing"]})
    assert store.class_ids == ("5", "7", "30", "pet", "living thing")
    assert store.hierarchy.to_parents() == {"5": ["living thing"], "7": ["pet"], "pet": ["living thing"]}
    report = check_coco(tmp_path / "data.json", images, tmp_path / "hierarchy.json")
    assert report.issues.count("added_class") == 2
    assert report.issues.count("unused_class") == 0  # their descendants have objects
    with pytest.raises(HierarchyError, match=r"2 labels are neither categories nor above one \(first: 'cow'"):
        prepare(hierarchy={"cow": ["farm animal"], "dog": ["animal"]})
    with pytest.raises(HierarchyError, match="above a category"):
        prepare(hierarchy={"dog": [""]})


def test_json_files_as_data_sets(prepare, images, tmp_path, monkeypatch):
    prepare()
    (tmp_path / "tree.json").write_text('{"dog": ["animal"]}')
    monkeypatch.chdir(tmp_path / "images")
    name = "json"
    register_store(name, "../data.json:../images:../tree.json")
    dataset = DatasetCatalog.get(name)
    assert len(dataset) == 3 and dataset.hierarchy.to_parents() == {"7": ["5"]}
    assert dataset.store.path.parent == tmp_path / ".longtail_det2"
    made = (dataset.store.path / "header.json").stat().st_mtime_ns
    assert (DatasetCatalog.get(name).store.path / "header.json").stat().st_mtime_ns == made
    metadata = MetadataCatalog.get(name)
    assert metadata.store_path == str(dataset.store.path)
    assert metadata.thing_classes == ["animal", "dog", "car"]
    content = copy.deepcopy(CONTENT)
    content["annotations"].pop()
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert DatasetCatalog.get(name).store.num_objects == 4  # made again
    content["annotations"][0]["category_id"] = 82
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"unknown category 82.*: longtail-det2 check coco --json .*$"):
        DatasetCatalog.get(name)
    (tmp_path / "data.json").write_text(json.dumps(CONTENT))
    (tmp_path / "tree.json").write_text("{}")
    with pytest.raises(DataError, match="changed since this process loaded"):
        DatasetCatalog.get(name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    monkeypatch.undo()
    register_datasets(stores=[f"{name}={tmp_path}/data.json:{images}:{tmp_path}/tree.json"])
    assert DatasetCatalog.get(name).hierarchy.is_flat


def test_one_process_makes_the_store(prepare, images, tmp_path):
    prepare()
    entry = CocoEntry(str(tmp_path / "data.json"), str(images))
    script = "import sys; from longtail_det2.data.datasets.builtin import CocoEntry as E; "
    script += "print(len(E.parse(sys.argv[1]).open_store()))"
    command = [sys.executable, "-c", script, f"{entry.json_file}:{images}"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=60)[0] for run in runs] == ["3\n"] * 3
    left = sorted(path.name for path in entry.store_path.parent.iterdir())
    assert left == [entry.store_path.name, entry.store_path.name + ".lock"]


def test_entries_with_colons_and_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert CocoEntry.parse("~/a:b/x.json:~/images") == CocoEntry("/home/me/a:b/x.json", "/home/me/images")
    one = CocoEntry.parse("/x.JSON:/a:b/images:/h.json")
    assert one == CocoEntry("/x.JSON", "/a:b/images", "/h.json")
    assert CocoEntry.parse("/d/x.json::/h.json") == CocoEntry("/d/x.json", "/d", "/h.json")
    assert CocoEntry.parse("/d/x.json") == CocoEntry("/d/x.json", "/d")
    for text in ("stores/train", "train.jsonl", "a.json/b"):
        assert CocoEntry.parse(text) is None
