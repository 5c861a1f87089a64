"""Pictures are written from whatever is there; how they look is for eyes."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from longtail_det2.ablation.plot_style import COLORS
from longtail_det2.ablation.plots import draw_plots
from longtail_det2.ablation.sweep_plot import draw_sweep


def has_color(path, color):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return bool((np.abs(pixels - 255 * np.array(to_rgb(color))).max(axis=1) <= 2).any())


def values_of(specification, data, seeds=(1, 2, 3)):
    lines = [name for name, _ in specification.lines()]
    return {
        (one, line, metric): {seed: 10.0 * place + seed + len(one) for seed in seeds}
        for one in data
        for place, line in enumerate(lines)
        for metric in specification.metrics
    }


def test_values_and_differences(project, tmp_path):
    project.specification["data"]["other"] = {"folder": str(project.data)}
    specification = project.load()
    files = draw_plots(specification, values_of(specification, ["real"]), tmp_path)
    assert [path.name for path in files] == ["plot.png", "differences.png"]
    assert has_color(files[0], COLORS[0]) and not has_color(files[0], COLORS[1])
    narrow = Image.open(files[0]).size
    files = draw_plots(specification, values_of(specification, ["real", "other"]), tmp_path)
    assert has_color(files[0], COLORS[1]) and has_color(files[1], COLORS[1])
    assert Image.open(files[0]).size[1] > narrow[1]
    files = draw_plots(specification, values_of(specification, ["real"], [2]), tmp_path)
    assert len(files) == 2  # one seed: no spread


def test_without_the_baseline_there_are_no_differences(project, tmp_path):
    specification = project.load()
    draw_plots(specification, values_of(specification, ["real"]), tmp_path)
    values = {key: one for key, one in values_of(specification, ["real"]).items() if key[1] != "first"}
    assert [path.name for path in draw_plots(specification, values, tmp_path)] == ["plot.png"]
    assert not (tmp_path / "differences.png").exists()  # not left from before
    assert draw_plots(specification, {}, tmp_path) == []


def test_a_sweep_is_drawn_over_its_numbers(project):
    rows = project.specification["rows"]
    rows[0].update(x=0.0)
    rows[1].update(x=0.7)
    rows[0].pop("evaluate")
    rows.append({"name": "hybrid", "label": "natural, then balanced"})
    project.specification["plot"] = {"x_label": "λ"}
    specification = project.load()
    figure = draw_sweep(specification, values_of(specification, ["real"]))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "λ"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.7", "natural, then\nbalanced"]
    assert axes.get_xticks().tolist() == pytest.approx([0, 0.7, 0.7 + 0.175])
    curve = axes.containers[0].lines[0]
    assert curve.get_xdata().tolist() == [0, 0.7] and curve.get_ydata().tolist() == [6.0, 16.0]
    assert axes.containers[1].lines[0].get_linestyle() == "None"
