"""Annotation files that are wrong: the message names file and line or entry; no store is left."""

import copy
import json
from contextlib import nullcontext

import pytest
from hostile_data import COCO, ROWS
from openimages_files import COLUMNS

from longtail_det2.data.datasets.coco import check_coco
from longtail_det2.utils.errors import DataError


def changed(row, **cells):
    values = dict(zip(COLUMNS.split(","), ROWS[row].split(","), strict=True))
    values.update(cells)
    rows = [*ROWS[:row], ",".join(values.values()), *ROWS[row + 1 :]]
    return "\n".join([COLUMNS, *rows]) + "\n"


SOUND = changed(0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (SOUND[: SOUND.rindex(",0.75")], "line 5: 7 cells"),
        (SOUND[:58], "line 1"),
        ("\n", "empty"),
        ("x" * 200_000 + "\n", "line 1: not a header"),
        (SOUND.replace("XMax", "Right"), "line 1: column XMax"),
        (SOUND.replace("IsOccluded", "XMin"), "line 1: column XMin"),
        (changed(1, YMin="left"), "line 3: column YMin .*'left'"),
        (changed(1, IsGroupOf=""), "line 3: column IsGroupOf is empty"),
        (changed(1, IsGroupOf="2"), "line 3: column IsGroupOf holds 2"),
        (changed(1, ImageID=""), "line 3: ImageID is empty"),
        (changed(2, XMax="1.2"), r"line 4: bad box XMin=0 XMax=1\.2 .*--skip-bad"),
        (changed(0, XMin="0.9"), r"line 2: bad box XMin=0\.9 XMax=0\.5"),
        (changed(0, XMin=""), "line 2: bad box XMin=nan"),
        (changed(3, LabelName="/m/horse"), "line 5: label '/m/horse'.*--on-unknown-label skip"),
        (SOUND.encode().replace(b"c,xclick", b"\xff,xclick"), "line 5: column ImageID"),
        (SOUND.replace("a,xclick,/m/man", "a\0,xclick,/m/man"), "line 3: ImageID"),
    ],
)
def test_box_files(data, text, named):
    data.write("boxes.csv", text)
    with pytest.raises(DataError, match=r"boxes\.csv.*" + named) as caught:
        data.open_images()
    assert "\n" not in str(caught.value)
    assert not (data.root / "store").exists() and not data.left_over()


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000, "\x00", '{"a": 1' + "0" * 5000 + "}", ""])
def test_json_that_is_none(data, text):
    for name in ("coco_hierarchy.json", "coco.json"):
        data.write(name, text)
        with pytest.raises(DataError, match=f"{name}: not a (usable )?JSON file"):
            data.prepare_coco()


URL = "http://images.cocodataset.org/train2017/"
LVIS = {**COCO, "categories": [{**one, "frequency": "c"} for one in COCO["categories"]]}


def spoil(part, index, content=COCO, **values):
    """The content with an entry changed; a value of None takes the key away."""
    content = copy.deepcopy(content)
    for key, value in values.items():
        content[part][index].pop(key, None)
        if value is not None:
            content[part][index][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "'images'"),
        ({**COCO, "images": None}, "'images'"),
        ({**COCO, "images": []}, "'images' is empty"),
        ({**COCO, "categories": []}, "'categories' is empty"),
        ({**COCO, "annotations": [3]}, r"annotations\[0\]"),
        (spoil("annotations", 0, id=[7]), r"annotations\[0\] has the id"),
        (spoil("annotations", 1, id=1), "annotation id 1 occurs twice"),
        (spoil("annotations", 0, image_id=True), "annotation 1 is on the unknown image True"),
        (spoil("annotations", 1, image_id=77), "annotation 2 is on the unknown image 77"),
        (spoil("annotations", 1, category_id=82), "annotation 2 .*unknown category 82; .*--skip-bad"),
        (spoil("annotations", 1, category_id=82, id=None), "annotation number 1 .*unknown category 82"),
        (spoil("annotations", 0, category_ids=30), "annotation 1: category ids"),
        (spoil("annotations", 1, bbox=[1, 2, 3]), "annotation 2 has the bbox"),
        (spoil("annotations", 1, bbox=[1, 2, 3, float("nan")]), "annotation 2 has the bbox"),
        (spoil("annotations", 1, bbox=[0, 0, 10**400, 1]), "annotation 2 has the bbox"),
        (spoil("annotations", 1, bbox=[90, 2, 5, 3]), "annotation 2 has the box .*64 x 48"),
        (spoil("annotations", 1, iscrowd="no"), "annotation 2.* iscrowd"),
        (spoil("images", 0, id="2"), "id 2 occurs twice among the images"),
        (spoil("images", 0, id=None), r"images\[0\] has no id"),
        (spoil("images", 0, height=0), "image 1 has height 0"),
        (spoil("images", 0, height=None), "image 1 has height None"),
        (spoil("images", 0, width=65), r"annotated as 65 x 48 .*a\.jpg.*--skip-bad"),
        (spoil("images", 0, neg_category_ids=[3, 7]), "image 1, neg_category_ids has .* 7; .*--skip-bad"),
        (spoil("images", 0, neg_category_ids=3), "image 1, neg_category_ids"),
        (spoil("images", 0, file_name=None), "image 1 has the file_name"),
        (spoil("images", 0, file_name="a\0.jpg"), "image 1 has the file_name"),
        (spoil("images", 0, file_name="\ud800.jpg"), "image 1 has the file_name"),
        (spoil("images", 0, file_name="nope.jpg"), r"nope\.jpg.*No such file"),
        (spoil("images", 0, file_name="sub/../../a.jpg"), "outside the image folder"),
        (spoil("images", 0, file_name="/etc/passwd"), "'/etc/passwd' outside the image folder"),
        (spoil("images", 0, file_name="x" * 256), "File name too long"),
        (spoil("images", 1, file_name=None, coco_url=7), "image 2 has the file_name 7"),
        (spoil("images", 1, file_name=None, coco_url=URL + "b.jpg"), r"train2017/b\.jpg.*--skip-bad"),
        (spoil("categories", 1, LVIS, frequency="x"), r"category 2 \('cat'\) has the frequency 'x'"),
        (spoil("categories", 2, LVIS, frequency=None), r"category 3 \('dog'\) has no frequency"),
        (spoil("categories", 0, name={"x": 1}), "category 1 has the name"),
        (spoil("categories", 1, id=1), "id 1 occurs twice among the categories"),
    ],
)
def test_coco_entries(data, content, named):
    data.write("coco.json", json.dumps(content))
    with pytest.raises(DataError, match=r"coco\.json.*" + named) as caught:
        data.prepare_coco()
    assert "\n" not in str(caught.value)
    assert not (data.root / "store").exists() and not data.left_over()
    with nullcontext() if "--skip-bad" in str(caught.value) else pytest.raises(DataError):
        data.prepare_coco(skip_bad=True)


def test_a_box_that_reaches_far_out_is_cut(data):
    data.write("coco.json", json.dumps(spoil("annotations", 1, bbox=[0, 0, 1e308, 1e308])))
    assert data.prepare_coco().boxes.max() == 1


def test_the_summary_has_everything_at_once(data):
    content = copy.deepcopy(COCO)
    content["images"][1]["file_name"] = "a.jpg"
    content["images"][2]["width"] = 65
    content["annotations"][1]["category_id"] = 82
    content["annotations"][2]["bbox"] = [60, 10, 20, 20]
    content["images"][0]["neg_category_ids"] = [3, 98]
    content["images"].append({"id": 4, "file_name": "nope.jpg", "not_exhaustive_category_ids": [98]})
    content["annotations"].append({"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]})
    content["annotations"].append({"id": 5, "image_id": 1, "category_id": 1, "bbox": [60, 1, 10, 5]})
    content["annotations"][-1]["segmentation"] = [[8, 4, 24, 4]]
    data.write("coco.json", json.dumps(content))
    report = check_coco(data.coco, data.images, data.coco_hierarchy)
    kinds = ("image_file", "other_size", "box", "mask", "cut_box", "empty_image", "unused_class")
    assert report.issues.counts() == {"unknown_category": 3, **dict.fromkeys(kinds, 1)}
    lines = report.text().splitlines()[-8:]
    assert [line.split()[0] for line in lines] == ["ERROR"] * 5 + ["warning"] * 3
    with pytest.raises(DataError, match=r"category 98 \(3 labels.*Further errors: 1 image files that"):
        data.prepare_coco()
    store = data.prepare_coco(skip_bad=True)
    assert store.image_ids.tolist() == [b"1", b"2"] and store.num_objects == 2
    assert store.image_label_status.tolist() == [0] and store.header["summary"]["images_left_out"] == 2


def test_files_that_cannot_be_read(data):
    images, data.images = data.images, data.root / "nowhere"
    with pytest.raises(DataError, match="nowhere: no such folder"):
        data.prepare_coco()
    data.images = images
    for path in (data.images, data.root / "absent.json"):
        data.coco = data.boxes = path
        for prepare in (data.prepare_coco, data.open_images):
            with pytest.raises(DataError, match=path.name):
                prepare()
