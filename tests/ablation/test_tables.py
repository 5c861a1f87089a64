"""Numbers of the table, computed by hand here."""

import math

import pytest

from longtail_det2.ablation.results import read_summary
from longtail_det2.ablation.spread import Mean, mean_over_seeds, paired_difference, t95
from longtail_det2.utils.errors import DataError


def test_mean_and_standard_deviation():
    found = mean_over_seeds({1: 10.0, 2: 12.0, 3: 17.0})
    assert found.mean == pytest.approx(13.0) and found.n == 3
    assert found.sd == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert found.se == pytest.approx(math.sqrt(13 / 3))
    one = mean_over_seeds({1: 10.0, 2: math.nan})
    assert (one.mean, one.n) == (10.0, 1) and math.isnan(one.sd) and not one.resolved
    assert mean_over_seeds({}).n == 0 and math.isnan(mean_over_seeds({}).mean)


def test_paired_difference_uses_common_seeds():
    found = paired_difference({1: 10.0, 2: 14.0, 3: 30.0, 9: 99.0}, {1: 9.0, 2: 11.0, 3: 25.0, 8: 0.0})
    assert found.n == 3 and found.mean == pytest.approx(3.0)
    assert found.sd == pytest.approx(2.0) and found.se == pytest.approx(2 / math.sqrt(3))


def test_resolved_means_that_students_interval_leaves_zero_out():
    # Three seeds: 4.303 standard errors of the mean.
    se = 1.0
    assert Mean(4.31, se * math.sqrt(3), 3).resolved and Mean(-4.31, se * math.sqrt(3), 3).resolved
    assert not Mean(4.29, se * math.sqrt(3), 3).resolved
    assert Mean(1.0, 0.0, 3).resolved and not Mean(0.0, 0.0, 3).resolved
    assert not Mean(5.0, math.nan, 1).resolved


def test_students_t():
    # Published values of the 97.5 % quantile.
    for degrees, value in {
        1: 12.706,
        2: 4.303,
        9: 2.262,
        30: 2.042,
        31: 2.0395,
        60: 2.0003,
        120: 1.9799,
    }.items():
        assert t95(degrees) == pytest.approx(value, abs=1e-3)
    values = [t95(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)


def test_summaries_of_several_metrics_and_data_sets(tmp_path):
    first = tmp_path / "inference" / "first"
    first.mkdir(parents=True)
    (first / "results.json").write_text(
        '{"summary": {"bbox": {"mAP50": 0.5}, "coco_bbox": {"AP": 0.25, "APs": null}}}'
    )
    (first / "predictions.json").write_text("[]")
    assert read_summary(tmp_path) == {"mAP50": 50.0, "coco_bbox/AP": 25.0, "coco_bbox/APs": None}
    second = tmp_path / "inference" / "second"
    second.mkdir()
    (second / "results.json").write_text('{"summary": {"bbox": {"mAP50": 0.75}}}')
    assert read_summary(tmp_path)["first/coco_bbox/AP"] == 25.0
    assert read_summary(tmp_path)["second/mAP50"] == 75.0
    (second / "results.json").write_text('{"summ')
    (first / "results.json").unlink()
    with pytest.raises(DataError, match="without an evaluation"):
        read_summary(tmp_path)


def test_the_table_holds_these_numbers(project):
    # mAP50 of the fake trainer is 100 lr + s + 0.1 s (s - 1), s the seed: 11, 12.2, 13.6, and ten more.
    assert project.run() == 0
    means, found = project.table()
    assert means[""] == ["n", "mAP50", "leaves"]
    first, second = (11 + 12.2 + 13.6) / 3, (21 + 22.2 + 23.6) / 3
    sd = math.sqrt(sum((one - first) ** 2 for one in (11, 12.2, 13.6)) / 2)
    assert means["first"] == ["3", f"{first:.2f} ± {sd:.2f}", f"{first / 2:.2f} ± {sd / 2:.2f}"]
    assert means["more"][1] == f"{first + 0.5:.2f} ± {sd:.2f}"
    # The column's best is bold where its difference to the baseline is resolved: it is 10 with every seed.
    assert means["the second"][1] == f"**{second:.2f} ± {sd:.2f}**"
    assert list(found) == ["", "---", "more", "the second"]
    assert found["more"] == ["3", "**+0.50 ± 0.00**", "**+0.25 ± 0.00**"]
    assert found["the second"] == ["3", "**+10.00 ± 0.00**", "**+5.00 ± 0.00**"]
    text = (project.output / "table.md").read_text()
    assert text.startswith("# A table\n") and "Difference to first, paired by seed" in text
    assert "6 trainings and 3 further evaluations" in text
    assert "python scripts/run_ablation.py table.yaml" in text and str(project.folder) not in text


def test_differences_below_the_noise_are_not_bold(project):
    rows = project.specification["rows"]
    rows[0].pop("evaluate")
    rows[1]["overrides"] = {"SOLVER.BASE_LR": 0.1, "TEST.DETECTIONS_PER_IMAGE": "{seed}"}
    project.specification["baseline"] = "second"
    trainer = project.scripts / "train_net.py"
    noisy = "* (seed - 2) * 50"
    text = trainer.read_text()
    line = 'value += 0.0001 * float(options.get("TEST.DETECTIONS_PER_IMAGE", 0))'
    assert line in text
    trainer.write_text(text.replace(line, f"{line} {noisy}"))
    assert project.run() == 0
    means, found = project.table()
    # Differences of "first" to "second", 0.01 % × 50 × seed × (seed - 2): 0.5, 0, -1.5, mean -1/3, SD 1.0408.
    assert found["first"][1] == f"−0.33 ± {1.0408 / math.sqrt(3):.2f}"
    assert not any("**" in cell for row in (*means.values(), *found.values()) for cell in row)


def test_a_mean_over_nothing_and_missing_seeds(project):
    project.specification["metrics"] = {"mAP50_tail": "tail", "mAP50": "all"}
    assert project.run("--seeds", "1") == 0
    assert project.run("--seeds", "2", "--only", "second") == 0
    means, found = project.table()
    assert means["first"] == ["1", "–", "11.00"]
    assert means["the second"] == ["2", "–", "21.60 ± 0.85"]
    assert found["the second"] == ["1", "–", "+10.00"]
