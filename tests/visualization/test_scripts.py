"""The command-line tools, called in this process."""

import importlib.util
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from longtail_det2.data.datasets.dataset import MultiLabelDataset


@pytest.fixture
def script(repository):
    """Loads a file of scripts/ as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, repository / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_make_report(script, run, store, tmp_path, capsys):
    main = script("make_report").main
    stores = ["--train-store", str(store.path), "--val-store", str(store.path)]
    output = tmp_path / "report.html"
    assert main(["--run", str(run), *stores, "--output", str(output), "--number", "1"]) == 0
    assert output.read_text().count("<img") == 2
    assert main(["--run", str(tmp_path / "absent"), "--output", str(output)]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_visualize_data(script, store, tmp_path, capsys):
    main = script("visualize_data").main
    output = tmp_path / "pictures"
    assert main(["--store", str(store.path), "--output", str(output), "--number", "2"]) == 0
    first = sorted(path.name for path in output.iterdir())
    assert len(first) == 2
    assert Image.open(output / first[0]).size == (384, 288)
    again = tmp_path / "again"
    main(["--store", str(store.path), "--output", str(again), "--number", "2"])
    assert sorted(path.name for path in again.iterdir()) == first
    chosen = tmp_path / "chosen"
    assert main(["--store", str(store.path), "--output", str(chosen), "--class", "red square"]) == 0
    assert [path.name for path in chosen.iterdir()] == ["im2.png"]
    assert main(["--store", str(store.path), "--output", str(chosen), "--class", "blue"]) == 2
    assert "no such class" in capsys.readouterr().err


def test_visualize_what_the_mapper_makes(script, store, tmp_path):
    main = script("visualize_data").main
    command = ["--store", str(store.path), "--output", str(tmp_path / "out"), "--number", "1", "--augmented"]
    assert main([*command, "INPUT.MIN_SIZE_TRAIN", "96,", "INPUT.MAX_SIZE_TRAIN", "640"]) == 0
    (picture,) = (tmp_path / "out").iterdir()
    assert Image.open(picture).size == (384, 288)


def test_visualize_results(script, run, store, tmp_path, capsys):
    main = script("visualize_results").main
    command = [
        "--predictions",
        str(run / "inference" / "tiny" / "predictions.csv"),
        "--store",
        str(store.path),
    ]
    assert main([*command, "--output", str(tmp_path / "out"), "--image-id", "im0", "im3"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["im0.png", "im3.png"]
    assert Image.open(tmp_path / "out" / "im0.png").size == (2 * 480 + 8, 360)
    assert main([*command, "--output", str(tmp_path / "out"), "--image-id", "im9"]) == 2
    assert "no such image" in capsys.readouterr().err


def test_results_on_a_registered_list_of_records(script, store, tmp_path):
    """A data set in Detectron2's own form, with COCO results."""
    records = [{**record, "image_id": number} for number, record in enumerate(MultiLabelDataset(store))]
    name = f"list_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    ids = {10 * index: index for index in range(5)}
    MetadataCatalog.get(name).set(
        thing_classes=list(store.class_names), thing_dataset_id_to_contiguous_id=ids
    )
    results = [{"image_id": 1, "category_id": 30, "bbox": [8, 8, 30, 30], "score": 0.9}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = ["--dataset", name, "--predictions", str(tmp_path / "results.json")]
    assert script("visualize_results").main([*command, "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i}.png" for i in range(4)]
    assert script("visualize_data").main(["--dataset", name, "--output", str(tmp_path / "data")]) == 0


def test_masks_of_the_mapper(script, masked_store, tmp_path):
    main = script("visualize_data").main
    options = ["INPUT.MIN_SIZE_TRAIN", "96,", "INPUT.MAX_SIZE_TRAIN", "640", "INPUT.RANDOM_FLIP", "none"]
    command = ["--store", str(masked_store.path), "--number", "4", "--augmented"]
    for name, more in (("boxes", []), ("masks", ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask"])):
        assert main([*command, "--output", str(tmp_path / name), *options, *more]) == 0
    differ = {}
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as one, Image.open(tmp_path / "boxes" / path.name) as other:
            differ[path.stem] = bool((np.asarray(one) != np.asarray(other)).any())
    assert differ == {
        "im0": True,
        "im1": False,
        "im2": True,
        "im3": False,
    }  # im1: nobody learns a group's mask


def test_results_with_masks(script, masked_run, masked_store, tmp_path, capsys):
    main = script("visualize_results").main
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    assert all("segmentation" in row for row in rows)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{**row, "segmentation": None} for row in rows]))
    pictures = []
    for path in (results, plain):
        out = tmp_path / path.stem
        command = ["--predictions", str(path), "--store", str(masked_store.path), "--output", str(out)]
        assert main([*command, "--image-id", "im0"]) == 0
        with Image.open(out / "im0.png") as picture:
            pictures.append(np.asarray(picture).astype(int))
    with_masks, without = pictures
    assert (with_masks[:, :480] == without[:, :480]).all()  # the truth
    inside = (slice(260, 300), slice(488 + 310, 488 + 400))  # in the second object, away from its box
    assert (with_masks[inside] != without[inside]).any(axis=2).mean() > 0.9


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [48, 64], "counts": "04"}, "entry 1 has a segmentation whose counts cover 4 of 3072"),
        (17, "entry 1 has a segmentation that is not RLE of its image's size [48, 64]"),
    ],
)
def test_malformed_masks_end_in_one_line(script, masked_run, masked_store, tmp_path, capsys, mask, message):
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    rows = json.loads(results.read_text())
    rows[1]["segmentation"] = mask
    results.write_text(json.dumps(rows))
    command = ["--predictions", str(results), "--store", str(masked_store.path)]
    assert script("visualize_results").main([*command, "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {results}: ") and message in line


def test_another_image_than_the_one_of_the_masks(script, masked_run, masked_store, tmp_path, capsys):
    Image.new("RGB", (60, 50)).save(masked_store.image_root / "im0.png")
    results = masked_run / "inference" / "masked" / "coco_instances_results.json"
    command = ["--predictions", str(results), "--store", str(masked_store.path), "--image-id", "im0"]
    assert script("visualize_results").main([*command, "--output", str(tmp_path / "out")]) == 2
    message = "image 'im0': a mask of (48, 64) pixels (height, width) does not fit an image of (50, 60)"
    assert message in capsys.readouterr().err
