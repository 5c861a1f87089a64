"""The commands that draw, called in this process."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from factories import image_label_store
from model_factories import classifier_run
from PIL import Image

from longtail_det2.cli import main
from longtail_det2.data.datasets.dataset import MultiLabelDataset


def call(name, *words):
    return main([*name.split(), *map(str, words)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_report(run, store, tmp_path):
    stores = ["--train-store", store.path, "--val-store", store.path]
    output = tmp_path / "report.html"
    assert call("report", "--run", run, *stores, "--output", output, "--number", 1) == 0
    assert output.read_text().count("data:image/jpeg") == 2


def test_visualize_data(store, tmp_path, capsys):
    command = ["visualize data", "--store", store.path, "--output"]
    for folder in ("one", "two"):
        assert call(*command, tmp_path / folder, "--number", 2) == 0
    first, _ = names(tmp_path / "one")
    assert names(tmp_path / "one") == names(tmp_path / "two")
    assert Image.open(tmp_path / "one" / first).size == (384, 288)
    assert call(*command, tmp_path / "chosen", "--class", "red square") == 0
    assert names(tmp_path / "chosen") == ["im2.png"]
    assert call(*command, tmp_path / "chosen", "--class", "blue") == 2
    assert "no such class" in capsys.readouterr().err
    (store.image_root / "im2.png").write_bytes(b"no picture")
    assert call(*command, tmp_path / "broken", "--class", "red square") == 2
    assert "im2.png (image 'im2'): cannot read the image" in capsys.readouterr().err


def test_results_of_whole_images(tmp_path):
    """Labels stand on white below the image, in truth and predictions."""
    store = image_label_store(tmp_path)
    run = classifier_run(tmp_path / "run", store)
    words = ["--store", store.path, "--predictions", run / "inference/tiny/scores.npz", "--image-id", "c"]
    assert call("visualize results", *words, "--output", tmp_path / "out", "--score-threshold", 0) == 0
    drawn = np.asarray(Image.open(tmp_path / "out/c.png"))
    assert drawn.shape[1] == 2 * 360 + 8 and 20 < len(drawn) - 480 < 150
    for below in (drawn[480:, :360], drawn[480:, 368:]):
        assert (below == 255).mean() > 0.7 and below.min() < 60


def test_registered_list_of_records(store, tmp_path, capsys):
    """A data set in Detectron2's own form is drawn; predictions belong to stores."""
    records = [{**record, "image_id": number} for number, record in enumerate(MultiLabelDataset(store))]
    name = f"list_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(store.class_names))
    command = ["--dataset", name, "--output", tmp_path / "out"]
    assert call("visualize data", *command) == 0
    assert names(tmp_path / "out") == [f"{i}.png" for i in range(4)]
    assert call("visualize results", *command, "--predictions", tmp_path / "results.json") == 2
    assert "DATASETS.STORES" in capsys.readouterr().err


def test_masks_of_the_mapper(masked_store, tmp_path):
    options = ["INPUT.MIN_SIZE_TRAIN", "96,", "INPUT.MAX_SIZE_TRAIN", "640", "INPUT.RANDOM_FLIP", "none"]
    command = ["visualize data", "--store", masked_store.path, "--number", "4", "--augmented"]
    for name, more in (("boxes", []), ("masks", ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask"])):
        assert call(*command, "--output", tmp_path / name, *options, *more) == 0
    differ = {}
    for path in (tmp_path / "masks").iterdir():
        one, other = (np.asarray(Image.open(tmp_path / name / path.name)) for name in ("masks", "boxes"))
        differ[path.stem] = bool((one != other).any())
    # im1: nobody learns a group's mask
    assert differ == {"im0": True, "im1": False, "im2": True, "im3": False}


@pytest.fixture
def draw(masked_run, masked_store, tmp_path):
    """Draws images with results whose rows were changed; returns the exit status and the first drawing."""
    rows = json.loads((masked_run / "inference/masked/coco_instances_results.json").read_text())
    assert all("segmentation" in row for row in rows)

    def run(change, *image_ids):
        for number, row in enumerate(rows):
            change(number, row)
        (tmp_path / "results.json").write_text(json.dumps(rows))
        command = ["--predictions", tmp_path / "results.json", "--store", masked_store.path]
        status = call("visualize results", *command, "--output", tmp_path / "out", "--image-id", *image_ids)
        return status, np.asarray(Image.open(tmp_path / "out" / "im0.png")) if status == 0 else None

    return run


def test_visualize_results(draw, tmp_path, capsys):
    _, with_masks = draw(lambda number, row: None, "im0", "im3")
    assert names(tmp_path / "out") == ["im0.png", "im3.png"] and with_masks.shape == (360, 2 * 480 + 8, 3)
    _, without = draw(lambda number, row: row.update(segmentation=None), "im0")
    assert (with_masks[:, :480] == without[:, :480]).all()  # the truth
    inside = (slice(260, 300), slice(488 + 310, 488 + 400))  # in the second object, away from its box
    assert (with_masks[inside] != without[inside]).any(axis=2).mean() > 0.9
    assert draw(lambda number, row: None, "im9")[0] == 2
    assert "no such image" in capsys.readouterr().err


def test_another_image_than_the_one_of_the_masks(draw, masked_store, capsys):
    Image.new("RGB", (60, 50)).save(masked_store.image_root / "im0.png")
    assert draw(lambda number, row: None, "im0")[0] == 2
    message = "image 'im0': a mask of (48, 64) pixels (height, width) does not fit an image of (50, 60)"
    assert message in capsys.readouterr().err
