"""Command-line tools on bad input: exit code 2, one line `error: ...`, no traceback."""

import json
import random
import subprocess
import sys

import pytest
from test_mutations import Attempts, mutate

from longtail_det2.cli import main


def run(script, *arguments, check_error=True, logged=False):
    command = [sys.executable, "-m", "longtail_det2.cli", *script.split(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    assert logged or "Traceback" not in done.stderr + done.stdout, done.stderr
    if check_error:
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and done.stderr.rstrip().splitlines()[-1] == lines[0], done.stderr
        return lines[0]
    assert done.returncode in (0, 2), done.stderr
    return done.stderr


def coco_arguments(data, output):
    return (
        *("--json", data.coco, "--images", data.images),
        *("--hierarchy", data.coco_hierarchy, "--output", output),
    )


def open_images_arguments(data, output):
    return (
        *("--boxes", data.boxes, "--image-labels", data.labels, "--classes", data.classes, "--quiet"),
        *("--hierarchy", data.hierarchy, "--images", data.images, "--output", output),
    )


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
    error = run("prepare coco", *coco_arguments(data, data.root / "store"))
    assert "b.jpg" in error
    error = call("prepare openimages", *open_images_arguments(data, data.root / "store"))
    assert "image b" in error


def test_picture_scripts(data, call):
    store = data.prepare_coco()
    out = data.root / "out"
    error = call("visualize data", "--store", data.images, "--output", out)
    assert "header.json" in error
    error = call("visualize data", "--dataset", "nothing", "--output", out)
    assert "'nothing'" in error
    data.write("p.json", json.dumps([{"image_id": 1}]))
    arguments = ("--store", store.path, "--output", out)
    error = call("visualize results", "--predictions", data.root / "p.json", *arguments)
    assert "p.json: entry 0" in error
    data.images.joinpath("b.jpg").write_bytes(b"no picture")
    error = call("visualize data", *arguments)
    assert "b.jpg (image '2')" in error
    data.write("taken", "")
    error = call("visualize data", "--store", store.path, "--output", data.root / "taken")
    assert "taken" in error


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
            logged=True,  # Detectron2 logs where training was; the last line is the message
        )
        assert "b.jpg (image '2'): cannot read the image (" in error and "truncated" in error.lower()


@pytest.mark.slow
def test_mutated_files(tmp_path):
    attempts = Attempts(tmp_path / "data")
    data = attempts.data
    for seed in range(8):
        rng = random.Random(seed)
        for target, script, arguments in (
            ("boxes", "prepare openimages", open_images_arguments),
            ("coco", "prepare coco", coco_arguments),
        ):
            path = getattr(data, target)
            path.write_bytes(mutate(attempts.sound[target], rng))
            run(script, *arguments(data, data.root / "out"), check_error=False)
            path.write_bytes(attempts.sound[target])
    assert not data.left_over()
