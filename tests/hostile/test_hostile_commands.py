"""Command-line tools on bad input: exit code 2, one line `error: ...`, no traceback."""

import json
import subprocess
import sys

import pytest

from longtail_det2.cli import main


def run(command, *arguments):
    """The last line that a process writes, which is the only one of an error."""
    command = [sys.executable, "-m", "longtail_det2.cli", *command.split(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.rstrip().splitlines()[-1] == lines[0], done.stderr
    return lines[0]


@pytest.fixture
def call(capsys):
    """Calls a command in this process, where an exception that it lets through fails the test."""

    def call(command, *arguments):
        assert main([*command.split(), *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


def test_prepare_scripts(data, call):
    data.images.joinpath("b.jpg").write_bytes(b"")
    common = ["--images", data.images, "--output", data.root / "store", "--hierarchy"]
    assert "b.jpg" in run("prepare coco", "--json", data.coco, *common, data.coco_hierarchy)
    boxes = ["--boxes", data.boxes, "--classes", data.classes, "--quiet", *common, data.hierarchy]
    assert "image b" in call("prepare openimages", *boxes)


def test_picture_scripts(data, call):
    store = data.prepare_coco()
    output, of_store = ("--output", data.root / "out"), ("--store", store.path)
    assert "header.json" in call("visualize data", "--store", data.images, *output)
    assert "'nothing'" in call("visualize data", "--dataset", "nothing", *output)
    predictions = data.write("p.json", json.dumps([{"image_id": 1}]))
    error = call("visualize results", "--predictions", predictions, *of_store, *output)
    assert "p.json: detection 0" in error
    data.images.joinpath("b.jpg").write_bytes(b"no picture")
    assert "b.jpg (image '2')" in call("visualize data", *of_store, *output)
    taken = data.write("taken", "")
    assert "taken" in call("visualize data", *of_store, "--output", taken)


@pytest.mark.slow
def test_training_on_a_broken_image(data):
    store = data.prepare_coco()
    content = (data.images / "b.jpg").read_bytes()
    (data.images / "b.jpg").write_bytes(content[: len(content) // 2])
    for workers in (0, 1):
        error = run(
            "train",
            "--config-file",
            "own_data/faster_rcnn_small_photos.yaml",
            *("DATASETS.STORES", f"t={store.path}", "DATASETS.TRAIN", "t", "DATASETS.TEST", "t"),
            *("SOLVER.MAX_ITER", 3, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", data.root / "run"),
        )
        assert "b.jpg (image '2'): cannot read the image (" in error and "truncated" in error.lower()
