"""Command-line tools on bad input: exit code 2, one line `error: ...`, no traceback."""

import json

import pytest

from longtail_det2.cli import main


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
    assert "b.jpg" in call("prepare coco", "--json", data.coco, *common, data.coco_hierarchy)
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
