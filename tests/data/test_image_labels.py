"""CSV files of image labels: what becomes of each part, and what is said of hostile ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail_det2.cli import main
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.datasets.image_labels import check_image_labels, prepare_image_labels
from longtail_det2.data.statistics import compute_statistics, read_statistics
from longtail_det2.utils.errors import ConfigError, DataError

TRAIN = "image,labels\nb.png,dog|person\na.png,cat\nsub/c.png,\n"


@pytest.fixture
def images(tmp_path):
    for name, size in (("a", (8, 6)), ("b", (5, 7)), ("sub/c", (4, 4))):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return tmp_path / "images"


@pytest.fixture
def files(tmp_path, images):
    """Writes the CSV and the files that other arguments name; gives the arguments of the functions."""

    def write(text=TRAIN, **options):
        (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, suffix in (("classes", "txt"), ("hierarchy", "json")):
            if isinstance(options.get(name), str):
                path = tmp_path / f"{name}.{options.pop('suffix', suffix)}"
                path.write_text(options[name])
                options[name] = path
        return {"csv_file": tmp_path / "labels.csv", "image_root": images, **options}

    return write


def labels_of(store):
    """{image: ([names of classes present], [verified absent])}."""
    names = store.class_names
    return {
        record["image_id"]: tuple(
            [names[label] for label in record[f"{key}_category_ids"]] for key in ("pos", "neg")
        )
        for record in MultiLabelDataset(store)
    }


def test_store(files, tmp_path, images):
    reports = []
    store = prepare_image_labels(**files(), output=tmp_path / "store", report=reports.append)
    assert (
        store.class_ids == ("cat", "dog", "person")
        and store.form == "image_labels"
        and store.num_objects == 0
    )
    assert store.exhaustive_labels and not store.has_hierarchy and store.image_root == images
    assert labels_of(store) == {
        "a.png": (["cat"], []),
        "b.png": (["dog", "person"], []),
        "sub/c.png": ([], []),
    }
    assert store.image_sizes.tolist() == [[6, 8], [7, 5], [4, 4]]
    assert repr(store).endswith("3 images, 3 image labels of 3 classes)")
    assert set(reports[0].issues.found) == {"own_classes", "empty_image"}
    assert "give them this store as --classes" in reports[0].text()
    # Another split, with the classes of the first; the order of the rows does not matter.
    other = prepare_image_labels(
        **files("image,labels\nb.png,dog\n", classes=store.path), output=tmp_path / "validation"
    )
    assert other.class_ids == store.class_ids
    assert [source["role"] for source in other.header["sources"]] == ["image_labels", "classes"]
    assert other.header["summary"]["images_of_the_rarest_class"] == 1


def test_absent_classes_leave_the_others_unverified(files, tmp_path):
    text = "labels,note,absent,image\ndog,x,cat|person,a.png\n,y,dog,b.png\n"
    store = prepare_image_labels(**files(text), output=tmp_path / "store")
    assert not store.exhaustive_labels and store.class_names == ("cat", "dog", "person")
    assert labels_of(store) == {"a.png": (["dog"], ["cat", "person"]), "b.png": ([], ["dog"])}
    issues = check_image_labels(**files(text)).issues
    assert issues.found["other_column"].example == "'note'"


@pytest.mark.parametrize(
    ("classes", "suffix", "ids", "names"),
    [
        (
            "person\ndog\n\ncat\nfire hydrant, red\n",
            "txt",
            ["person", "dog", "cat", "fire hydrant, red"],
            None,
        ),
        ("\ufeffindex,name\r\n0,person\r\n1,dog\r\n2,cat\r\n", "csv", ["person", "dog", "cat"], None),
        ("name,id\nperson,1\ndog,2\ncat,3\n", "csv", ["1", "2", "3"], ["person", "dog", "cat"]),
        ("id\nperson\ndog\ncat\n", "list", ["person", "dog", "cat"], None),
    ],
)
def test_lists_of_classes(files, tmp_path, classes, suffix, ids, names):
    store = prepare_image_labels(**files(classes=classes, suffix=suffix), output=tmp_path / "store")
    assert store.class_ids == tuple(ids) and store.class_names == tuple(names or ids)
    assert labels_of(store)["b.png"][0] == ["person", "dog"]


def test_labels_may_be_ids(files, tmp_path):
    arguments = files(
        "image,labels\na.png,3|dog\n", classes="name,id\nperson,1\ndog,2\ncat,3\n", suffix="csv"
    )
    assert labels_of(prepare_image_labels(**arguments, output=tmp_path / "store")) == {
        "a.png": (["dog", "cat"], [])
    }


def test_hierarchy(files, tmp_path):
    tree = json.dumps({"dog": ["animal"], "cat": ["animal"]})
    store = prepare_image_labels(**files(hierarchy=tree), output=tmp_path / "store")
    assert store.class_ids == ("cat", "dog", "person", "animal")
    assert store.hierarchy.to_parents() == {"cat": ["animal"], "dog": ["animal"]}
    assert compute_statistics(store, image_level=True).image_counts.tolist() == [1, 1, 1, 2]
    assert (
        prepare_image_labels(**files(classes=store.path), output=tmp_path / "other").hierarchy
        == store.hierarchy
    )


@pytest.mark.parametrize(
    ("text", "kind", "example", "kept"),
    [
        ("image,labels\na.png,dog\nb.png,dgo\n", "unknown_class", "line 3: 'dgo' (do you mean 'dog'?)", 2),
        (
            "image,labels\na.png,dog cat\n",
            "unknown_class",
            "line 2: 'dog cat' (do you mean --separator ' '?)",
            1,
        ),
        (
            "image,labels\na.png,dog\nb.png,cat\n./a.png,cat\n",
            "repeated_image",
            "line 4: 'a.png' is in line 2, too",
            2,
        ),
        ("image,labels\na.png,dog\n,cat\n", "file_name", "line 3: the image is ''", 1),
        ("image,labels\na.png,dog\n../b.png,cat\n", "file_name", "line 3: the image is '../b.png'", 1),
        ("image,labels\na.png,dog\n/etc/b.png,cat\n", "file_name", "line 3: the image is '/etc/b.png'", 1),
        ("image,labels\na.png,dog\nb.png,cat,dog\n", "cells", "line 3: 3 cells where the header has 2", 1),
        ("image,labels\na.png,dog\nb.p", "cells", "line 3: 1 cells where the header has 2", 1),
        ("image,labels,absent\na.png,dog|cat,dog\n", "contradiction", "line 2: 'dog'", 1),
        (
            "image,labels\na.png,dog\nz.png,cat\n",
            "image_file",
            "z.png: cannot read the image (No such file",
            1,
        ),
        (
            "image,labels\na.png,dog\nt.png,cat\n",
            "image_file",
            "t.png: cannot read the image (not an image",
            1,
        ),
        (
            "image,labels\na.png,dog\nsub,cat\n",
            "image_file",
            "sub: cannot read the image (not a regular file)",
            1,
        ),
    ],
)
def test_bad_entries(files, images, tmp_path, text, kind, example, kept):
    (images / "t.png").write_bytes((images / "a.png").read_bytes()[:12])
    arguments = files(text, classes="dog\ncat\nperson\n")
    report = check_image_labels(**arguments)
    assert list(report.issues.errors) == [kind] and example in report.issues.found[kind].example
    with pytest.raises(DataError, match=r"labels\.csv: .*--skip-bad") as error:
        prepare_image_labels(**arguments, output=tmp_path / "store")
    assert example in str(error.value) and not (tmp_path / "store").exists()
    assert len(prepare_image_labels(**arguments, output=tmp_path / "store", skip_bad=True)) == kept


def test_contradictory_labels_are_left_unverified(files, tmp_path):
    arguments = files("image,labels,absent\na.png,dog|cat,dog|person\n", skip_bad=True)
    assert labels_of(prepare_image_labels(**arguments, output=tmp_path / "store")) == {
        "a.png": (["cat"], ["person"])
    }


def test_warnings(files):
    report = check_image_labels(**files("image,labels\na.png,dog|dog| dog |\nb.png,", classes="dog\ncat\n"))
    assert report.issues.counts() == {"cut_end": 1, "repeated_label": 2, "empty_image": 1, "unused_class": 1}
    assert report.summary["labels_present"] == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "labels.csv: is empty"),
        ("image,labels\n", {}, "labels.csv: no image has a label"),
        ("image,labels\n", {"classes": "dog\n"}, "labels.csv: no image is left"),
        ("file,labels\na.png,dog\n", {}, "line 1: column image is missing; the header has file, labels"),
        (
            "image;labels\na.png;dog\n",
            {},
            "line 1: column image, labels is missing; the header has image;labels",
        ),
        ("image,labels,labels\na.png,dog,cat\n", {}, "line 1: column labels occurs 2 times"),
        ("a.png,dog\nb.png,cat\n", {}, "line 1: column image, labels is missing"),
        (
            "image,labels\na.png,dog;cat\nb.png,dog\n",
            {},
            "'dog;cat' and others .*do you mean --separator ';'",
        ),
        ("image,labels\na.png,dog cat\nb.png,dog\nc.png,cat\n", {}, "do you mean --separator ' '"),
        ("image,labels\na.png,dog|cat\nb.png,cat\n", {"separator": ";"}, "do you mean --separator '|'"),
        ("image,labels\na.png,dog|cat\n", {"separator": ""}, "--separator is empty"),
        (
            "image,dog,cat\na.png,0,1\nb.png,1,1\n",
            {},
            "line 2: has 0 or 1 for each class; wanted are the names",
        ),
        (
            "image,labels\na.png,0 1 1\nb.png,1 0 0\n",
            {"classes": "dog\n"},
            "line 2: has 0 or 1 for each class",
        ),
        ('image,labels\na.png,"[0, 1, 1]"\n', {}, "line 2: has 0 or 1 for each class"),
        (b"image,labels\na.png,dog\nb.png,c\xe4t\n", {}, "labels.csv, line 3: not UTF-8"),
        (TRAIN.encode("utf-16"), {}, "labels.csv, line 1: not UTF-8"),
        ('image,labels\na.png,dog\nb.png,"cat\n', {}, "labels.csv, line 3: not a row of a CSV file"),
        (TRAIN, {"classes": "dog\ncat\ndog\n"}, "classes.txt, line 3: class 'dog' is listed twice"),
        (TRAIN, {"classes": "\n"}, "classes.txt: has no classes"),
        (
            TRAIN,
            {"classes": "index,label\n0,dog\n", "suffix": "csv"},
            "classes.csv, line 1: column name is missing",
        ),
        (TRAIN, {"classes": "name,id\ndog,1\ncat\n", "suffix": "csv"}, "classes.csv: line 3: 1 cells"),
        (
            TRAIN,
            {"classes": "name,id\ndog,\n", "suffix": "csv"},
            "classes.csv, line 2: the class has no name",
        ),
        (TRAIN, {"classes": Path("absent.csv")}, "absent.csv: cannot be read"),
        (TRAIN, {"hierarchy": '{"dgo": ["animal"]}'}, "hierarchy.json: .*'dgo'"),
        (TRAIN, {"image_root": Path("absent")}, "absent: no such folder of images"),
    ],
)
def test_hostile_files(files, tmp_path, text, options, message):
    with pytest.raises((DataError, ConfigError)) as error:
        prepare_image_labels(**files(text, **options), output=tmp_path / "store")
    told = str(error.value)
    assert all(part in told for part in message.split(".*")) and "\n" not in told
    assert not (tmp_path / "store").exists()


def test_names_of_several_words_are_labels(files):
    text = "image,labels\na.png,fire hydrant\nb.png,traffic light|bench\n"
    assert check_image_labels(**files(text)).content["class_ids"] == [
        "bench",
        "fire hydrant",
        "traffic light",
    ]
    text = "image,labels\na.png,0|1\nb.png,1\n"
    assert check_image_labels(**files(text)).content["class_ids"] == ["0", "1"]


def test_commands(files, tmp_path, capsys):
    arguments = files()
    words = ["--csv", str(arguments["csv_file"]), "--images", str(arguments["image_root"])]
    assert main(["check", "image-labels", *words]) == 0
    told = capsys.readouterr().out
    assert "3  images\n" in told and "images without labels: 'sub/c.png'" in told
    store = str(tmp_path / "store")
    assert main(["prepare", "image-labels", *words, "--output", store]) == 0
    assert capsys.readouterr().out.startswith(told)
    assert main(["statistics", "--store", store, "--output", str(tmp_path), "--least-objects", "1"]) == 0
    assert read_statistics(tmp_path / "statistics.json").image_counts.tolist() == [1, 1, 1]
    drawn = tmp_path / "drawn"
    words_to_draw = ["--store", store, "--output", str(drawn), "--class", "dog"]
    for more in ([], ["--augmented", "INPUT.IMAGE_LEVEL", "True", "INPUT.FIXED_SIZE", "(64, 64)"]):
        assert main(["visualize", "data", *words_to_draw, *more]) == 0
        assert [path.name for path in drawn.iterdir()] == ["b.png.png"]
    (arguments["image_root"] / "a.png").unlink()
    assert main(["check", "image-labels", *words]) == 2
    assert "a.png: cannot read the image" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clothing", "coco_people"])
def test_photographs(tmp_path, shared_dir, name):
    folder = shared_dir / "data" / name
    arguments = {"csv_file": folder / "labels_train.csv", "image_root": folder / "images" / "train"}
    store = prepare_image_labels(**arguments, classes=folder / "classes.csv", output=tmp_path / "store")
    with open(folder / "classes.csv", newline="") as file:
        documented = {row["name"]: int(row["train_images"]) for row in csv.DictReader(file)}
    counts = compute_statistics(store, image_level=True).image_counts
    assert dict(zip(store.class_names, counts.tolist(), strict=True)) == documented
    assert np.all(store.image_sizes > 0)
