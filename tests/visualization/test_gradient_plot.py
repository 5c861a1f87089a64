import json

import numpy as np
import pytest
from PIL import Image

from longtail_det2.utils.errors import DataError
from longtail_det2.visualization.gradient_plot import draw_gradients, read_gradients


@pytest.fixture
def command(script):
    return script("plot_class_gradients").main


def make_run(path, ids=("a", "b", "c"), predictors=1, slope=1.0):
    path.mkdir()
    sums = {"positive": [slope * 1.0, 2.0, 0.0], "negative": [4.0, 2.0, 1.0]}
    content = {
        "class_ids": ids,
        "iterations": 5,
        "predictors": {f"head.{i}": sums for i in range(predictors)},
    }
    (path / "class_gradients.json").write_text(json.dumps(content))
    sampled = {"class_ids": ids, "images_by_class": [3, 50, 0], "phases": []}
    (path / "sampled_classes.json").write_text(json.dumps(sampled))
    return path


def test_ratios(tmp_path):
    run = read_gradients(make_run(tmp_path / "run", predictors=3))
    assert run.name == str(tmp_path / "run") and run.images.tolist() == [3, 50, 0]
    np.testing.assert_allclose(run.ratio, [0.25, 1.0, np.nan])


def test_command_draws_several_runs(tmp_path, command, capsys):
    one, two, three = (str(make_run(tmp_path / name, slope=k)) for name, k in (("1", 1), ("2", 4), ("3", 3)))
    methods = ["--runs", "softmax", one, two, "--runs", "Seesaw", three]
    assert command([*methods, "--output", str(tmp_path / "plot.png")]) == 0
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1080, 660)
    printed = capsys.readouterr().out
    assert "plot.png" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["softmax", "2", "0.50", "1.00", "-"] in lines and ["Seesaw", "1", "0.75", "1.00", "-"] in lines
    for wrong in (
        ["--runs", "softmax", "--output", "plot.png"],
        ["--runs", "softmax", one, "--runs", "softmax", two, "--output", "plot.png"],
        [*methods, "--output", "plot.txt"],
    ):
        with pytest.raises(SystemExit):
            command(wrong)


def test_runs_without_the_log(tmp_path, command, capsys):
    assert command(["--runs", "one", str(tmp_path), "--output", str(tmp_path / "plot.png")]) == 2
    message = capsys.readouterr().err
    assert "class_gradients.json" in message and "LOG_CLASS_GRADIENTS True" in message
    run = make_run(tmp_path / "damaged")
    (run / "class_gradients.json").write_text("[]")
    with pytest.raises(DataError, match="not what a training writes"):
        read_gradients(run)


def test_different_classes(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", ids=("a", "b", "d"))
    with pytest.raises(DataError, match=r"two is of other classes than .*one"):
        draw_gradients(tmp_path / "plot.png", {"a": [read_gradients(one)], "b": [read_gradients(two)]})
    assert not (tmp_path / "plot.png").exists()
    sampled = json.loads((two / "sampled_classes.json").read_text())
    (two / "sampled_classes.json").write_text(json.dumps({**sampled, "class_ids": ["a", "b", "c"]}))
    with pytest.raises(DataError, match="different classes"):
        read_gradients(two)
