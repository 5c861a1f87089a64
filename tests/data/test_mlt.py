"""COCO-MLT and VOC-MLT: labels of annotations, published lists, long tails drawn anew, hostile input."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from longtail_det2.cli import main
from longtail_det2.data.datasets.mlt import VOC_CLASSES, LongTail, prepare_mlt
from longtail_det2.data.statistics import compute_statistics
from longtail_det2.layers import rebalanced_weights
from longtail_det2.utils.errors import ConfigError, DataError


def coco(labels, categories):
    """A COCO file of {image: [class indices]}; categories are (id, name) in any order."""
    keys = sorted(key for key, _ in categories)
    objects = [(image, keys[label]) for image, some in labels.items() for label in some]
    return {
        "images": [{"id": one, "file_name": f"{one:012}.jpg", "height": 60, "width": 80} for one in labels],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": key,
                "bbox": [1, 2, 30, 40],
                "area": 9.5,
                "iscrowd": 0,
            }
            for n, (image, key) in enumerate(objects)
        ],
        "categories": [{"id": key, "name": name} for key, name in categories],
    }


def voc(folder, labels, image_set="trainval"):
    """Writes a VOC folder of {image: [class names]}."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in labels))
    Image.new("RGB", (8, 6)).save(folder / "one.jpg")
    for name, objects in labels.items():
        inner = "".join(
            f"<object><name>{one}</name><difficult>1</difficult><part><name>head</name></part></object>"
            for one in objects
        )
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{inner}</annotation>")
        os.link(folder / "one.jpg", folder / "JPEGImages" / f"{name}.jpg")
    return folder


def labels_of(store):
    """{image id: class indices}."""
    offsets, labels = store.present_labels
    rows = np.split(labels, offsets[1:-1])
    return {key.decode(): row.tolist() for key, row in zip(store.image_ids, rows, strict=True)}


CATEGORIES = [(7, "dog"), (3, "cat"), (90, "person")]
LABELS = {9: [0, 1], 10: [2], 2: []}


@pytest.fixture
def source(tmp_path):
    """Writes COCO's JSON, perhaps edited, and a list; gives the arguments of `prepare_mlt`."""

    def write(edit=None, image_list=None, **options):
        content = coco(LABELS, CATEGORIES)
        if edit is not None:
            edit(content)
        (tmp_path / "instances.json").write_text(json.dumps(content))
        if image_list is not None:
            options["image_list"] = tmp_path / "list.txt"
            options["image_list"].write_bytes(
                image_list if isinstance(image_list, bytes) else image_list.encode()
            )
        return {"annotations": tmp_path / "instances.json", "output": tmp_path / "store", **options}

    return write


def test_coco(source):
    store = prepare_mlt(**source())
    assert store.class_ids == ("3", "7", "90") and store.class_names == ("cat", "dog", "person")
    assert labels_of(store) == {"10": [2], "2": [], "9": [0, 1]}
    assert store.form == "image_labels" and store.exhaustive_labels and store.num_objects == 0


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"iscrowd": 1}, True),
        ({"area": None}, True),
        ({"area": 0}, False),
        ({"area": -1.5}, False),
        ({"bbox": [1, 2, 0.9, 40]}, False),
        ({"bbox": [1, 2, 30, 0]}, False),
        ({"bbox": [1, 2, 1, 1]}, True),
        ({"ignore": 1}, False),
        ({"ignore": 0}, True),
    ],
)
def test_which_objects_of_coco_count(source, change, counts):
    store = prepare_mlt(**source(lambda content: content["annotations"][2].update(change)))
    assert labels_of(store)["10"] == ([2] if counts else [])


@pytest.mark.parametrize(
    "image_list",
    [
        "9\n10\n",
        "000000000010\r\n\r\n 9 \r\n",
        "train2017/000000000009.jpg\n10",
        "image_id,labels\n10,2\n9,1 0\n",
    ],
)
def test_lists(source, image_list):
    store = prepare_mlt(**source(image_list=image_list))
    assert labels_of(store) == {"10": [2], "9": [0, 1]}
    assert [one["role"] for one in store.header["sources"]] == ["annotations", "list"]
    assert store.header["summary"]["images_left_out"] == 1


def test_voc(tmp_path):
    labels = {"2008_000002": ["train"], "2008_000003": ["person", "dog", "person"], "2008_000001": []}
    folder = voc(tmp_path / "VOC2012", labels)
    store = prepare_mlt(folder, tmp_path / "store")
    assert store.class_names == tuple(VOC_CLASSES) and sorted(VOC_CLASSES) == VOC_CLASSES
    assert labels_of(store) == {"2008_000001": [], "2008_000002": [18], "2008_000003": [11, 14]}
    assert store.image_root == folder / "JPEGImages" and store.image_sizes.tolist() == [[6, 8]] * 3
    voc(folder, {"000005": ["chair"]}, "test")
    assert labels_of(prepare_mlt(folder, tmp_path / "store", image_set="test")) == {"000005": [8]}


def test_classes_verified_absent_leave_the_others_unverified(source):
    store = prepare_mlt(**source(lambda content: content["images"][1].update(neg_category_ids=[3])))
    assert not store.exhaustive_labels and labels_of(store)["10"] == [2]


@pytest.mark.parametrize(
    ("image_list", "kind", "message"),
    [
        ("9\n11\n", True, "list.txt, line 2: image '11'; give the annotations that it was made of"),
        ("9\n000000000009.jpg\n", True, "list.txt, line 2: image '000000000009.jpg'; one line for each"),
        ("image_id,labels\n9,0\n", False, "line 2: image '9' has the labels '0' there, but '0 1' here"),
        (
            "image_id,labels\n9,0 1\n10,x\n",
            False,
            "line 3: image '10' has the labels 'x' there, but '2' here",
        ),
        ("image_id,labels\n9\n10,2\n", True, "line 2: 1 cells where the header has 2"),
        ("\n", False, "no image is left"),
        ("", False, "list.txt: is empty; an image id in each line is needed"),
        (b"\x80\x04\x95", False, "list.txt, line 1: not UTF-8"),
    ],
)
def test_hostile_lists(source, image_list, kind, message):
    arguments = source(image_list=image_list)
    with pytest.raises(DataError) as error:
        prepare_mlt(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert ("--skip-bad" in str(error.value)) == kind
    if kind:
        assert len(prepare_mlt(**arguments, skip_bad=True)) == 1


def no_annotations(content):
    del content["annotations"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda content: content["annotations"][0].update(category_id=4),
            "annotation 0 has the unknown category 4",
        ),
        (
            lambda content: content["annotations"][0].update(image_id=4),
            "annotation 0 is on the unknown image 4",
        ),
        (lambda content: content["annotations"][1].update(id=0), "annotation id 0 occurs twice"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), "annotation 0 has the bbox [1, 2]"),
        (lambda content: content["annotations"].insert(0, 5), "annotations[0] is no object"),
        (
            lambda content: content["images"][0].update(height=None, width=None),
            "image '9' has no height and width",
        ),
        (no_annotations, "has no list 'annotations'"),
    ],
)
def test_hostile_coco_files(source, edit, message):
    with pytest.raises(DataError, match=r"^[^\n]*instances\.json: [^\n]*$") as error:
        prepare_mlt(**source(edit))
    assert message in str(error.value)


def test_hostile_voc_folders(tmp_path):
    folder = voc(tmp_path / "VOC2012", {"a": ["dog"], "b": ["cat"], "c": ["cow"], "d": ["bus"]})
    main_folder, xml = folder / "ImageSets" / "Main", folder / "Annotations"
    for name, text, message in (
        ("a", "<annotation><object>", "a.xml: no element found"),
        ("a", "<html></html>", "a.xml: it is <html>, not <annotation>"),
        (
            "b",
            "<annotation><object><name>unicorn</name></object></annotation>",
            "b.xml: 'unicorn', none of VOC's 20",
        ),
    ):
        sound = (xml / f"{name}.xml").read_text()
        (xml / f"{name}.xml").write_text(text)
        with pytest.raises(DataError) as error:
            prepare_mlt(folder, tmp_path / "store")
        assert message in str(error.value)
        (xml / f"{name}.xml").write_text(sound)
    (main_folder / "twice.txt").write_text("a\nb\na\n../c\n")
    (xml / "b.xml").unlink()
    reports = []
    with pytest.raises(DataError, match=r"b\.xml: No such file or directory; complete"):
        prepare_mlt(folder, tmp_path / "store", image_set="twice", report=reports.append)
    assert set(reports[0].issues.errors) == {"repeated_id", "xml", "file_name"}
    assert "twice.txt, line 3: image 'a' is there twice" in reports[0].issues.found["repeated_id"].example
    with pytest.raises(DataError, match=r"Main/test\.txt: no such file; a folder such as VOCdevkit/VOC2012"):
        prepare_mlt(folder, tmp_path / "store", image_set="test")


def random_labels(num_images=4000, num_classes=12):
    generator = np.random.default_rng(3)
    return generator.random((num_images, num_classes)) < np.linspace(0.3, 0.05, num_classes)


def test_curve():
    curve = LongTail(800).curve(20).tolist()
    assert curve == [800, 529, 359, 248, 175, 125, 91, 67, 50, 38, 29, 23, 18, 14, 11, 9, 7, 6, 5, 4]
    assert LongTail(1200).curve(80)[[0, -1]].tolist() == [1200, 6]


def test_draw():
    present = random_labels()
    chosen = LongTail(300, seed=1).draw(present)
    np.testing.assert_array_equal(chosen, LongTail(300, seed=1).draw(present))
    assert (chosen != LongTail(300, seed=2).draw(present)).any()
    together = present.T.astype(int) @ present / present.sum(axis=0)[:, None]
    order = np.argsort(-together.sum(axis=0))
    counts, curve = present[chosen].sum(axis=0)[order], LongTail(300).curve(12)
    assert abs(np.log(counts / curve)).max() < np.log(3) and counts[-1] == curve[-1]


def test_draw_with_rare_and_absent_classes():
    present = np.zeros((50, 3), dtype=bool)
    present[:4, 0] = present[3:40, 1] = True
    chosen = LongTail(20, 10).draw(present)
    assert chosen[:3].all() and not chosen[40:].any() and present[chosen].sum(axis=0)[2] == 0


def test_drawn_store(source):
    everything = prepare_mlt(**source(draw=LongTail(5)))
    assert sorted(labels_of(everything)) == ["10", "9"]
    assert everything.header["options"]["draw"] == {"most": 5, "least": 1, "seed": 0}
    for draw in (LongTail(0), LongTail(5, 6), LongTail(5, -1), LongTail(5, seed=-1)):
        with pytest.raises(ConfigError, match="wanted are 0 <= least <= most"):
            prepare_mlt(**source(draw=draw))
    with pytest.raises(ConfigError, match="no list of images"):
        prepare_mlt(**source(image_list="9\n", draw=LongTail(5)))


def test_command(source, tmp_path, capsys):
    arguments = source()
    words = ["--annotations", str(arguments["annotations"]), "--output", str(tmp_path / "store")]
    assert main(["prepare", "mlt", *words, "--draw", "--max", "4", "--seed", "2"]) == 0
    told = capsys.readouterr().out
    assert "2  images\n" in told and "1  images left out\n" in told and "3 image labels of 3 classes" in told
    assert main(["prepare", "mlt", *words, "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "constants", "images", "mean", "heads"),
    [
        ("coco_mlt", {"alpha": 0.1, "beta": 10.0, "mu": 0.2}, 1909, 0.555, (22, 33, 25)),
        ("voc_mlt", {"alpha": 0.1, "beta": 10.0, "mu": 0.3}, 1142, 0.715, (6, 6, 8)),
    ],
)
def test_published_lists(tmp_path, shared_dir, name, constants, images, mean, heads):
    folder = shared_dir / "data" / "mlt"
    with open(folder / f"{name}_classes.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    with open(folder / f"{name}_train.csv", newline="") as file:
        labels = {row["image_id"]: list(map(int, row["labels"].split())) for row in csv.DictReader(file)}
    labels = {"999999999": list(range(len(classes))), **labels}
    if name == "coco_mlt":
        categories = [(int(row["coco_category_id"]), row["name"]) for row in classes]
        source = tmp_path / "instances.json"
        source.write_text(
            json.dumps(coco({int(key): some for key, some in labels.items()}, categories[::-1]))
        )
    else:
        source = voc(tmp_path, {key: [VOC_CLASSES[one] for one in some] for key, some in labels.items()})
    store = prepare_mlt(source, tmp_path / "store", image_list=folder / f"{name}_train.csv")
    counts = compute_statistics(store, image_level=True).image_counts
    assert len(store) == images and store.class_names == tuple(row["name"] for row in classes)
    assert counts.tolist() == [int(row["train_images"]) for row in classes]
    tail, medium = int((counts < 20).sum()), int(((counts >= 20) & (counts < 100)).sum())
    assert (len(counts) - medium - tail, medium, tail) == heads
    offsets, flat = store.present_labels
    positive = torch.zeros(len(store), len(counts), dtype=torch.bool)
    positive[torch.arange(len(store)).repeat_interleave(torch.from_numpy(np.diff(offsets))), flat] = True
    weights = rebalanced_weights(positive, torch.from_numpy(counts), **constants)
    assert weights[positive].mean().item() == pytest.approx(mean, abs=5e-4)


def test_a_long_tail_of_voc_is_like_the_published_one(shared_dir):
    folder = shared_dir / "data" / "mlt"
    with open(folder / "voc2012_trainval_labels.csv", newline="") as file:
        rows = [[int(label) for label in row["labels"].split()] for row in csv.DictReader(file)]
    with open(folder / "voc_mlt_classes.csv", newline="") as file:
        published = np.array([int(row["train_images"]) for row in csv.DictReader(file)])
    present = np.zeros((len(rows), 20), dtype=bool)
    for row, labels in enumerate(rows):
        present[row, labels] = True
    chosen = LongTail(800).draw(present)
    counts = present[chosen].sum(axis=0)
    assert abs(np.log(counts / published)).max() < 0.2
    assert abs(np.log(np.sort(counts)[::-1] / LongTail(800).curve(20))).max() < 0.4
    assert chosen.sum() == pytest.approx(1142, rel=0.02)
