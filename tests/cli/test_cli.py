"""The entry point: finding commands, help without heavy imports, errors, and the commands that check data."""

import dataclasses
import subprocess
import sys

import pytest

from longtail_det2 import cli
from longtail_det2.cli.shapes import OPTIONS
from longtail_det2.data.store import AnnotationStore
from longtail_det2.shapes import ShapesOptions
from longtail_det2.utils.io import read_json

ALL_HELP = """
import contextlib, sys
import longtail_det2.api
from longtail_det2.cli import COMMANDS, main
for name in ("", *COMMANDS):
    with contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
print("heavy:", sorted({"torch", "detectron2", "pyarrow", "matplotlib", "numpy", "PIL"} & set(sys.modules)))
"""


def test_help_of_every_command_without_heavy_imports():
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f"usage: longtail-det2 {name} [-h]" in done.stdout
        assert f"  {name:22}{cli.COMMANDS[name]}\n" in done.stdout
    assert done.stdout.endswith("heavy: []\n")


def test_finding_commands(capsys):
    assert cli.main(["prepare"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["prepare", "coco"],
        ["prepare", "openimages"],
        ["prepare", "image-labels"],
        ["prepare", "mlt"],
    ]
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("longtail-det2 0.")
    for words, message in (
        (["trian"], "there is no command 'trian', only prepare coco, "),
        (["check", "voc"], "there is no command 'check voc', only check coco, check openimages"),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --config-file nothing.yaml", "nothing.yaml is no file"),
        ("eval --config-file shapes/faster_rcnn_tiny_softmax_shapes.yaml NO.KEY 1", "NO.KEY"),
        ("demo --input a.jpg --output out", "no such file"),
        ("prepare coco --json absent.json --images . --output out", "absent.json"),
        ("prepare openimages --boxes no.csv --classes no.csv --output out", "no.csv: no such file (boxes)"),
        ("prepare image-labels --csv no.csv --images . --output out", "no.csv: cannot be read (No such file"),
        ("prepare mlt --annotations no.json --output out", "no.json: no such file"),
        ("prepare mlt --annotations . --max 5 --output out", "--draw"),
        ("statistics --dataset absent --output out", "unknown data set 'absent'"),
        ("statistics --store . --output out", "header.json is missing"),
        ("anchor-statistics --config-file absent.yaml --output a.json", "absent.yaml is no file"),
        ("visualize data --dataset absent --output out", "'absent'"),
        ("visualize results --store . --predictions p.json --output out", "header.json is missing"),
        ("report --run absent --output out", "no such folder"),
        ("evaluate-lvis --annotations a.json --results r.json", "no such file"),
        ("publish absent --output out", "no run or checkpoint"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and not list(tmp_path.iterdir())


def test_defaults_in_the_help_of_shapes():
    fields = {field.name: field.default for field in dataclasses.fields(ShapesOptions)}
    assert set(OPTIONS) == set(fields) - {"formats"}
    for name, (kind, text) in OPTIONS.items():
        assert text.endswith(f"({fields[name]:g})") and type(fields[name]) is kind


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    options = ["--train-images", "16", "--validation-images", "8", "--num-leaves", "8", "--imbalance", "2"]
    options += ["--co-label-rate", "0", "--min-objects", "1", "--quiet", "--stores", "--workers", "1"]
    assert cli.main(["shapes", "--output", str(folder), *options]) == 0
    return folder


def test_shapes_with_stores(shapes):
    assert read_json(shapes / "generation.json")["options"]["num_leaves"] == 8
    for store in (shapes / "stores", shapes.parent / "shapes_lvis/stores"):
        assert len(AnnotationStore(store / "train")) == 16


def test_check_of_files(shapes, capsys):
    before = sorted(shapes.rglob("*"))
    coco = ["--json", str(shapes / "coco/train.json"), "--images", str(shapes / "images/train")]
    assert cli.main(["check", "coco", *coco]) == 0 and "16" in capsys.readouterr().out
    notes = shapes / "annotations"
    csv = ["--boxes", str(notes / "train-annotations-bbox.csv"), "--images", str(shapes / "images/train")]
    csv += ["--classes", str(notes / "class-descriptions.csv"), "--quiet"]
    assert cli.main(["check", "openimages", *csv]) == 0 and "objects" in capsys.readouterr().out
    assert sorted(shapes.rglob("*")) == before
    coco[3] = str(shapes / "images/validation")
    assert cli.main(["check", "coco", *coco]) == 2 and "error: " in capsys.readouterr().err
