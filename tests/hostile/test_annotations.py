"""Annotation files that are wrong: the message names file and line or entry; no store is left."""

import copy
import json

import pytest
from hostile_data import COCO, HEADER, ROWS

from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.datasets.coco import check_coco
from longtail_det2.utils.errors import DataError


def changed(row, **cells):
    values = dict(zip(HEADER.split(","), ROWS[row].split(","), strict=True))
    values.update(cells)
    rows = [*ROWS[:row], ",".join(values.values()), *ROWS[row + 1 :]]
    return "\n".join([HEADER, *rows]) + "\n"


SOUND = changed(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            SOUND[:-12], r"line 5: 6 cells where the header has 10; is the file complete", id="truncated"
        ),
        pytest.param(
            SOUND[:58], r"line 1: the header has no line end; is the file complete", id="cut in the header"
        ),
        pytest.param("", r": is empty", id="empty"),
        pytest.param(
            SOUND.replace("XMax", "Right"),
            r"line 1: column XMax is missing; the header has ImageID, LabelName",
            id="missing column",
        ),
        pytest.param(
            changed(1, YMin="left"), r"line 3: column YMin holds 'left' instead of a number", id="no number"
        ),
        pytest.param(
            changed(1, IsGroupOf="yes"),
            r"line 3: column IsGroupOf holds 'yes' instead of a number",
            id="no integer",
        ),
        pytest.param(
            changed(2, XMax="1.2"),
            r"line 4: bad box XMin=0 XMax=1\.2 .*--skip-bad",
            id="outside",
        ),
        pytest.param(changed(0, XMin="0.9"), r"line 2: bad box XMin=0\.9 XMax=0\.5", id="inverted"),
        pytest.param(changed(0, XMin="nan"), r"line 2: bad box XMin=nan", id="not a number"),
        pytest.param(
            changed(3, LabelName="/m/horse"),
            r"line 5: label '/m/horse' is not among the 3 classes.*--on-unknown-label skip",
            id="unknown label",
        ),
        pytest.param(
            SOUND.encode().replace(b"c,/m/animal", b"\xff,/m/animal"),
            r"line 5: column ImageID is not UTF-8",
            id="encoding",
        ),
        pytest.param(
            SOUND.replace("a,/m/cat", "a\0,/m/cat"),
            r"line 3: ImageID .* zero byte",
            id="zero byte",
        ),
    ],
)
def test_box_files(data, text, message):
    data.write("boxes.csv", text)
    with pytest.raises(DataError, match=r"boxes\.csv.*" + message) as caught:
        data.open_images()
    assert "\n" not in str(caught.value)
    assert not (data.root / "store").exists() and not data.left_over()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"/m/cat": ["/m/animal"], "/m/animal": ["/m/cat"]}, r"cycle .*: /m/(cat|animal) -> "),
        ({"/m/cat": ["/m/cat"]}, r"cycle .*/m/cat -> /m/cat"),
        ({"/m/cat": "x", "/m/dog": 7}, r"parents of '/m/dog' must be a list of class ids, got 7"),
        (["/m/cat"], r"expected a JSON object .* got list"),
        (
            {"LabelName": "/m/animal", "Subcategory": 3},
            r"'Subcategory' of '/m/animal' must be a list of nodes",
        ),
        (
            {"LabelName": "/m/animal", "Subcategory": [{}]},
            r"node below '/m/animal' has no 'LabelName' string",
        ),
    ],
)
def test_hierarchies(data, content, message):
    data.write("hierarchy.json", json.dumps(content))
    with pytest.raises(DataError, match=r"hierarchy\.json: " + message):
        data.open_images()
    assert not (data.root / "store").exists()


def test_unknown_label_in_a_hierarchy(data):
    data.write("coco_hierarchy.json", '{"cat": ["animal"], "dgo": ["animal"]}')
    with pytest.raises(
        DataError, match=r"first: 'dgo', do you mean 'dog'\?\); correct them, or .*--skip-bad"
    ):
        data.prepare_coco()
    store = data.prepare_coco(skip_bad=True)
    assert store.class_ids == ("1", "2", "3") and store.hierarchy.to_parents() == {"2": ["1"]}


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000, "\x00", '{"a": 1' + "0" * 5000 + "}", ""])
def test_json_that_is_none(data, text):
    data.write("coco_hierarchy.json", text)
    with pytest.raises(DataError, match=r"coco_hierarchy\.json: not a (usable )?JSON file"):
        data.prepare_coco()
    data.write("coco.json", text)
    with pytest.raises(DataError, match=r"coco\.json: not a (usable )?JSON file"):
        data.prepare_coco()


def spoil(*edits):
    content = copy.deepcopy(COCO)
    for part, index, values in edits:
        content[part][index].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            spoil(("annotations", 0, {"image_id": [1]})),
            r"annotation 1 is on the unknown image \[1\]; add the images",
        ),
        (spoil(("annotations", 0, {"image_id": True})), r"annotation 1 is on the unknown image True"),
        (spoil(("annotations", 0, {"id": [7]})), r"annotations\[0\] has the id \[7\], no integer or text"),
        (spoil(("annotations", 1, {"category_id": True})), r"annotation 2 has the unknown category True"),
        (
            spoil(("annotations", 1, {"category_id": 82})),
            r"unknown category 82; .*--skip-bad",
        ),
        (spoil(("annotations", 1, {"bbox": [0, 0, 10**400, 1]})), r"annotation 2 has the bbox"),
        (spoil(("annotations", 1, {"bbox": [0, 0, 1e308, 1e308]})), r"no area|bbox|reach|unused"),
        (
            spoil(("annotations", 1, {"bbox": [10, 0, -5, 5]})),
            r"area inside the image",
        ),
        (spoil(("annotations", 1, {"iscrowd": "no"})), r"iscrowd and is_group_of must be 0 or 1"),
        (spoil(("images", 0, {"height": 10**12})), r"image 1 has height 10+ and width 64"),
        (spoil(("images", 0, {"file_name": "a\0.jpg"})), r"image 1 has the file_name"),
        (spoil(("images", 0, {"file_name": "\ud800.jpg"})), r"image 1 has the file_name"),
        (spoil(("images", 0, {"file_name": "nope.jpg"})), r"nope\.jpg: cannot read the image \(No such file"),
        (spoil(("images", 0, {"width": 65})), r"annotated as 65 x 48 pixels .*--skip-bad"),
        (
            spoil(("categories", 0, {"name": {"x": 1}})),
            r"category 1 has the name \{'x': 1\}, which is no text",
        ),
        (spoil(("categories", 1, {"id": 1})), r"id 1 occurs twice among the categories"),
    ],
)
def test_coco_entries(data, content, message):
    data.write("coco.json", json.dumps(content))
    if "1e308" in message or "reach" in message:
        data.prepare_coco()  # cut at the border, with a warning in the summary
        return
    with pytest.raises(DataError, match=r"coco\.json.*" + message):
        data.prepare_coco()
    assert not (data.root / "store").exists() and not data.left_over()


def test_the_summary_has_everything_at_once(data):
    content = spoil(
        ("images", 1, {"file_name": "a.jpg"}),
        ("images", 2, {"width": 65}),
        ("annotations", 1, {"category_id": 82}),
        ("annotations", 2, {"bbox": [60, 10, 20, 20]}),
    )
    content["images"].append({"id": 4, "file_name": "nope.jpg"})
    content["annotations"].append({"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]})
    content["annotations"].append({"id": 5, "image_id": 1, "category_id": 1, "bbox": [60, 1, 10, 5]})
    data.write("coco.json", json.dumps(content))
    report = check_coco(data.coco, data.images, data.coco_hierarchy)
    assert report.issues.counts() == {
        "unknown_category": 1,
        "image_file": 1,
        "other_size": 1,
        "box": 1,
        "cut_box": 1,
        "empty_image": 1,
        "unused_class": 1,
    }
    lines = report.text().splitlines()[-7:]
    assert [line.split()[0] for line in lines] == ["ERROR"] * 4 + ["warning"] * 3
    assert all(words in "".join(lines) for words in ("has 64 x 48", "annotation 4 has the box [1, 1, 0, 5]"))
    with pytest.raises(DataError, match=r"nope\.jpg: cannot read .*Further errors: .*1 labels of categories"):
        data.prepare_coco()
    store = data.prepare_coco(skip_bad=True)
    assert store.image_ids.tolist() == [b"1", b"2"] and store.num_objects == 2


def test_files_that_cannot_be_read(data):
    with pytest.raises(DataError, match=r"boxes: no such file|no such file"):
        data.boxes = data.root / "boxes"
        data.open_images()
    data.coco = data.images
    with pytest.raises(DataError, match=r"images: cannot be read \(Is a directory\)"):
        data.prepare_coco()


def test_coco_named_as_a_data_set(data):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    data.write("coco.json", json.dumps(spoil(("annotations", 1, {"category_id": 82}))))
    name = f"hostile_{data.root}"
    register_store(name, f"{data.coco}:{data.images}:{data.coco_hierarchy}")
    try:
        with pytest.raises(DataError, match=r"unknown category 82.*All of it: longtail-det2 prepare coco"):
            DatasetCatalog.get(name)
        data.write("coco.json", json.dumps(COCO))
        assert len(DatasetCatalog.get(name)) == 3
        assert MetadataCatalog.get(name).thing_classes == ["animal", "cat", "dog"]
        content = copy.deepcopy(COCO)
        content["images"].pop()
        content["annotations"].pop()
        data.write("coco.json", json.dumps(content))
        assert len(DatasetCatalog.get(name)) == 2  # made again
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
