"""The generated data set as files: formats, repeatability, errors, the command line."""

import dataclasses
import filecmp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapes_reading import FEW, OPTIONS, polygons_to_mask, read_csv, read_json, rle_to_mask

from longtail_det2.cli import main
from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.shapes import generate_shapes
from longtail_det2.shapes.writers import BOX_COLUMNS
from longtail_det2.utils.errors import ConfigError, DataError

# Files


def test_open_images_files(dataset, vocabulary):
    folder = dataset / "annotations"
    assert (folder / "train-annotations-bbox.csv").read_text().splitlines()[0] == ",".join(BOX_COLUMNS)
    descriptions = [line.split(",") for line in (folder / "class-descriptions.csv").read_text().splitlines()]
    assert [class_id for class_id, _ in descriptions] == list(vocabulary.class_ids)
    hierarchy = LabelHierarchy.from_json(folder / "hierarchy.json", vocabulary.class_ids)
    assert hierarchy.leaves.tolist() == list(range(vocabulary.num_leaves))
    for split, number in (("train", 150), ("validation", 40)):
        boxes = read_csv(folder / f"{split}-annotations-bbox.csv")
        labels = read_csv(folder / f"{split}-human-imagelabels.csv")
        images = sorted(path.stem for path in (dataset / "images" / split).glob("*.jpg"))
        assert len(images) == number and {row["ImageID"] for row in boxes} == set(images)
        for row in boxes:
            assert 0 <= float(row["XMin"]) < float(row["XMax"]) <= 1
            assert 0 <= float(row["YMin"]) < float(row["YMax"]) <= 1
            assert row["LabelName"] in vocabulary.class_ids
        written = {(row["ImageID"], row["LabelName"]) for row in boxes}
        positive = {(row["ImageID"], row["LabelName"]) for row in labels if row["Confidence"] == "1"}
        negative = {(row["ImageID"], row["LabelName"]) for row in labels if row["Confidence"] == "0"}
        assert positive == written and not negative & positive and negative
        assert sum(row["IsGroupOf"] == "1" for row in boxes) > 0
    with Image.open(dataset / "images" / "train" / "train_000000.jpg") as image:
        assert image.size == (96, 96) and image.mode == "RGB"


def test_coco_tells_of_the_same_objects(dataset, vocabulary):
    for split in ("train", "validation"):
        coco = read_json(dataset / "coco" / f"{split}.json")
        rows = read_csv(dataset / "annotations" / f"{split}-annotations-bbox.csv")
        files = {image["id"]: Path(image["file_name"]).stem for image in coco["images"]}
        names = {category["id"]: category["class_id"] for category in coco["categories"]}
        assert list(names) == list(range(1, vocabulary.num_classes + 1))
        ours = []
        for annotation in coco["annotations"]:
            x, y, width, height = annotation["bbox"]
            box = tuple(f"{edge / 96:.6f}" for edge in (x, x + width, y, y + height))
            assert annotation["category_id"] == annotation["category_ids"][0]
            for label in annotation["category_ids"]:
                ours.append((files[annotation["image_id"]], names[label], *box, str(annotation["iscrowd"])))
            if annotation["iscrowd"]:
                mask = rle_to_mask(annotation["segmentation"])
            else:
                mask = polygons_to_mask(annotation["segmentation"], 96, 96)
            assert mask.sum() == annotation["area"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert mask[y].any() and mask[y + height - 1].any()
            assert mask[:, x].any() and mask[:, x + width - 1].any()
        columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
        assert ours == [tuple(row[name] for name in columns) for row in rows]


def contents(store):
    """{file: its objects and image labels}, in no particular order."""
    found = {}
    for record in MultiLabelDataset(store):
        objects = [
            (np.round(one["bbox"]).tolist(), one["is_group_of"], sorted(one["category_ids"]))
            for one in record["annotations"]
        ]
        labels = [sorted(record[f"{kind}_category_ids"]) for kind in ("pos", "neg")]
        found[record["file_name"]] = sorted(objects), labels
    return found


def test_the_stores_of_both_forms_are_the_same(dataset, tmp_path):
    folder = dataset / "annotations"
    images = dataset / "images" / "train"
    ours = prepare_openimages(
        [folder / "train-annotations-bbox.csv"],
        [folder / "train-human-imagelabels.csv"],
        folder / "class-descriptions.csv",
        folder / "hierarchy.json",
        images,
        tmp_path / "openimages",
        workers=1,
        progress=False,
    )
    file, hierarchy = (dataset / "coco" / name for name in ("train.json", "hierarchy.json"))
    coco = prepare_coco(file, images, tmp_path / "coco", hierarchy)
    counts = read_json(dataset / "generation.json")["counts"]["train"]
    assert len(ours) == 150 and ours.num_objects == counts["objects"]
    assert ours.class_names == coco.class_names
    assert contents(ours) == contents(coco)
    assert np.array_equal(ours.hierarchy.ancestors, coco.hierarchy.ancestors)
    assert len(ours.labels) == counts["rows"]


# Repeatability


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_same_seed_same_bytes_whatever_the_number_of_workers(dataset, tmp_path):
    other = tmp_path / "other"
    generate_shapes(other, OPTIONS, workers=3, progress=False)
    names = files_of(dataset)
    assert names == files_of(other)
    assert filecmp.cmpfiles(dataset, other, names, shallow=False)[1:] == ([], [])


def test_a_second_call_finds_the_data_set_and_other_options_need_force(tmp_path):
    folder = tmp_path / "s"
    first = generate_shapes(folder, FEW, workers=1, progress=False)
    stamp = (folder / "generation.json").stat().st_mtime_ns
    assert generate_shapes(folder, FEW, workers=1, progress=False) == first
    assert (folder / "generation.json").stat().st_mtime_ns == stamp
    changed = dataclasses.replace(FEW, seed=9)
    with pytest.raises(ConfigError, match=r"seed: 3 -> 9.*--force"):
        generate_shapes(folder, changed, workers=1, progress=False)
    assert generate_shapes(folder, changed, workers=1, force=True, progress=False)["options"]["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# Errors


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(DataError, match="not made by this generator"):
            generate_shapes(tmp_path / "s", OPTIONS, force=force, progress=False)
    (tmp_path / "s" / "generation.json").write_text("[]")
    with pytest.raises(DataError):
        generate_shapes(tmp_path / "s", OPTIONS, force=True, progress=False)
    assert (tmp_path / "s" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DataError):
        generate_shapes(tmp_path / "s" / "thesis.txt", OPTIONS, progress=False)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("missing_leaf_rate", [1.5]),
        ("co_label_rate", [-0.1, 1.0, 2]),
        ("confusion_rate", [float("nan")]),
        ("imbalance", [0.5, float("inf")]),
        ("num_leaves", [1, 61]),
        ("train_images", [10]),
        ("validation_images", [2]),
        ("image_size", [8]),
        ("max_objects", [40]),
        ("seed", [-1]),
        ("formats", [("voc",), ()]),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, key, values):
    for value in values:
        with pytest.raises(ConfigError, match="too few" if "images" in key else key):
            generate_shapes(tmp_path / "s", dataclasses.replace(OPTIONS, **{key: value}), progress=False)
    rates = dataclasses.replace(OPTIONS, missing_leaf_rate=0.6, confusion_rate=0.5)
    with pytest.raises(ConfigError, match="lower the rates"):
        generate_shapes(tmp_path / "s", rates, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path, capsys):
    arguments = ["shapes", "--output", tmp_path / "s", "--quiet", "--num-leaves", 12, "--imbalance", 2]
    arguments += ["--train-images", 20, "--validation-images", 8, "--image-size", 64]
    arguments += ["--group-of-rate", 0, "--formats", "openimages,lvis"]
    assert main(list(map(str, arguments))) == 0 and "train: 20 images" in capsys.readouterr().out
    options = read_json(tmp_path / "s" / "generation.json")["options"]
    assert (options["num_leaves"], options["formats"]) == (12, ["openimages", "lvis"])
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"annotations", "images", "lvis", "generation.json"}
    assert main(["shapes", "--output", str(tmp_path / "t"), "--co-label-rate", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: co_label_rate")


def test_a_killed_run_leaves_nothing_that_looks_finished(repository, tmp_path):
    output = tmp_path / "s"
    command = [sys.executable, "-m", "longtail_det2.cli", "shapes", "--output", str(output), "--quiet"]
    process = subprocess.Popen(
        [*command, "--train-images", "20000", "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".s.partial-*/images/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # ends only when the workers have let go of the pipes, too
    assert not output.exists()
    assert len(list(tmp_path.glob(".s.partial-*"))) == 2  # with its lock
    generate_shapes(output, FEW, workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
