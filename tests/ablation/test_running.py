"""The command on a fake trainer: what is run, continued, redone, and what happens to failures."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from longtail_det2.ablation.layout import Layout, locked
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError


def lines(calls):
    """(row, seed, evaluated only) of each call."""
    found = []
    for call in calls:
        parts = call["options"]["OUTPUT_DIR"].split("/")
        found.append((parts[-3], int(call["options"]["SEED"]), call["flags"] == ["--eval-only"]))
    return found


ALL = [(line, seed, line == "first@more") for seed in (1, 2, 3) for line in ("first", "first@more", "second")]


def test_everything_is_run_once(project, caplog):
    assert project.run() == 0
    calls = project.calls()
    assert lines(calls) == ALL
    assert {call["threads"] for call in calls} == {"1"}
    first = calls[0]
    assert first["flags"] == ["--resume"] and first["options"]["DATASETS.ROOT"] == str(project.data)
    assert calls[1]["options"]["MODEL.WEIGHTS"] == first["options"]["OUTPUT_DIR"] + "/model_final.pth"
    told = caplog.messages
    assert "[1/9] real/first/seed1: train 2 iterations" in told
    assert told[-1].startswith("[9/9] real/second/seed3: done in")

    result = project.results()["first@more", 2]
    assert result["metrics"] == {
        "mAP50": pytest.approx(12.7),
        "mAP50_leaves": pytest.approx(6.35),
        "mAP50_tail": None,
    }
    assert result["overrides"] == {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.BASE_LR": 0.1,
        "TEST.DETECTIONS_PER_IMAGE": 50,
    }
    assert result["weights_of"] == "real/first/seed2" and result["attempts"] == 1
    assert result["cpu_seconds"] >= 0 and result["wall_seconds"] > 0
    assert result["software"]["torch"] and result["machine"]["cpu"] and result["machine"]["cores"] >= 1
    assert str(project.folder) not in (project.output / "results.json").read_text()
    run = project.output / "runs" / "real" / "first" / "seed1"
    assert (run / "job.log").read_text().startswith("$ ")
    assert [path.name for path in run.glob("run/*.pth")] == ["model_final.pth"]  # no checkpoints in between
    for name in ("table.md", "plot.png", "differences.png"):
        assert (project.output / name).stat().st_size > 100

    assert project.run("--jobs", "3") == 0
    assert project.calls() == []


def test_several_at_once_with_threads(project):
    project.specification["overrides"]["SOLVER.WARMUP_FACTOR"] = 0.3
    started = time.monotonic()
    assert project.run("--jobs", "6", "--threads", "2", "--seeds", "1,2,3") == 0
    assert time.monotonic() - started < 6 * 0.6 + 2  # one after the other they would only sleep that long
    calls = project.calls()
    assert sorted(lines(calls)) == sorted(ALL) and {call["threads"] for call in calls} == {"2"}
    assert len(project.results()) == 9


def test_a_changed_override_redoes_what_changed(project):
    assert project.run() == 0
    project.calls()
    rows = project.specification["rows"]
    rows[0]["evaluate"][0]["overrides"]["TEST.DETECTIONS_PER_IMAGE"] = 10
    assert project.run() == 0
    assert lines(project.calls()) == [("first@more", seed, True) for seed in (1, 2, 3)]
    assert project.results()["first@more", 1]["metrics"]["mAP50"] == pytest.approx(11.1)
    rows[1]["overrides"]["SOLVER.BASE_LR"] = 0.4
    assert project.run("--only", "second", "--seeds", "1") == 0
    assert lines(project.calls()) == [("second", 1, False)]
    results = project.results()
    # The results of other settings count no longer.
    assert set(results) == {(line, s) for line in ("first", "first@more") for s in (1, 2, 3)} | {
        ("second", 1)
    }
    steps = project.output / "runs/real/second/seed1/run/steps.txt"
    assert steps.read_text() == "0\n1\n"  # a new training, not the old one continued


def test_more_rows_and_seeds_can_be_added(project):
    project.specification["seeds"] = [1]
    assert project.run() == 0
    project.calls()
    project.specification["seeds"] = [1, 2]
    project.specification["rows"].append({"name": "third"})
    assert project.run() == 0
    assert lines(project.calls()) == [("third", 1, False)] + [
        (line, 2, line == "first@more") for line in ("first", "first@more", "second", "third")
    ]


def test_weights_that_are_gone_are_trained_again_when_needed(project):
    project.specification["seeds"] = [1]
    assert project.run() == 0
    (project.output / "runs/real/first/seed1/run/model_final.pth").unlink()
    project.calls()
    assert project.run() == 0
    assert project.calls() == []
    project.specification["rows"][0]["evaluate"][0]["overrides"]["TEST.DETECTIONS_PER_IMAGE"] = 1
    assert project.run() == 0
    assert lines(project.calls()) == [("first", 1, False), ("first@more", 1, True)]


def test_a_failed_job_is_told_of_and_does_not_stop_the_others(project, caplog, capsys):
    project.specification["seeds"] = [1]
    project.specification["rows"][0]["overrides"]["MODEL.DEVICE"] = "broken"
    assert project.run() == 1
    assert lines(project.calls()) == [("first", 1, False), ("second", 1, False)]
    start = caplog.messages.index("FAILED real/first/seed1: exit status 2")
    told = caplog.messages[start + 1 : start + 4]
    assert told == ["  | step 1", "  | step 2", "  | error: the device is broken"]
    assert capsys.readouterr().err == (
        "FAILED real/first/seed1: exit status 2\n"
        "FAILED real/first@more/seed1: not started: real/first/seed1 failed\n"
    )
    assert list(project.results()) == [("second", 1)]
    assert project.run("--only", "second") == 0
    assert project.run() == 1
    assert lines(project.calls()) == [("first", 1, False)]
    project.specification["rows"][0]["overrides"].pop("MODEL.DEVICE")
    assert project.run() == 0


def test_a_run_without_evaluation_has_failed(project, capsys):
    project.specification["seeds"] = [1]
    trainer = project.scripts / "train_net.py"
    trainer.write_text(trainer.read_text().replace('"summary"', '"sumary"'))
    assert project.run() == 1
    assert "real/second/seed1: it ended without an evaluation" in capsys.readouterr().err


def test_a_row_that_starts_from_another(project):
    project.specification["rows"][1].update(start_from="first")
    project.specification["rows"][0]["hidden"] = True
    assert project.run("--only", "second", "--seeds", "2") == 0
    calls = project.calls()
    assert lines(calls) == [("first", 2, False), ("first@more", 2, True), ("second", 2, False)]
    assert calls[2]["options"]["MODEL.WEIGHTS"] == calls[0]["options"]["OUTPUT_DIR"] + "/model_final.pth"
    assert calls[2]["flags"] == ["--resume"] and "MODEL.WEIGHTS" not in calls[0]["options"]
    assert list(project.table()[0]) == ["", "---", "the second"]


def test_a_lazy_row_is_for_the_other_script(project):
    project.specification.update(overrides={}, seeds=[3])
    project.specification["rows"] = [
        {
            "name": "lazy",
            "config": "shapes/faster_rcnn_tiny_softmax_shapes.py",
            "overrides": {"train.max_iter": 1},
        }
    ]
    (project.scripts / "train_net.py").unlink()
    assert project.run() == 0
    assert project.calls()[0]["options"]["datasets.root"] == str(project.data)
    assert project.results()["lazy", 3]["metrics"]["mAP50"] == pytest.approx(13.6)


def test_dry_run_lists_jobs_and_does_nothing(project, capsys):
    assert project.run("--dry-run") == 0
    out = capsys.readouterr().out
    assert "to do          20 s  real/first/seed1: train 2 iterations" in out
    assert "6 trainings, 3 further evaluations" in out and "to do: about 3 min 01 s" in out
    assert not project.output.exists() and project.calls() == []
    assert project.run("--seeds", "1") == 0
    capsys.readouterr()
    assert project.run("--dry-run", "--jobs", "2") == 0
    out = capsys.readouterr().out
    assert "done                 real/first@more/seed1: evaluate" in out
    assert "to do           0 s  real/second/seed3: train 2 iterations" in out  # as measured


def test_report_alone(project):
    assert project.run("--report") == 0
    assert project.results() == {} and project.calls() == []
    assert project.run("--seeds", "1") == 0
    (project.output / "table.md").unlink()
    project.calls()
    assert project.run("--report") == 0
    assert project.calls() == [] and len(project.table()) == 2


def test_mistakes_end_with_status_2(project, capsys):
    project.specification["metrics"] = ["mAP50_leafs"]
    assert project.run() == 2
    message = f"error: {project.path}: metrics: the evaluations have no 'mAP50_leafs'; they have mAP50, "
    assert capsys.readouterr().err.startswith(message)
    assert len(project.calls()) == 1  # told after the first run, not after the last
    for arguments, part in {
        ("--jobs", "0"): "--jobs must be at least 1",
        ("--seeds", "1,x"): "--seeds must be different numbers",
        ("--only", "frst"): "no row 'frst'",
    }.items():
        assert project.run(*arguments) == 2
        assert part in capsys.readouterr().err
    project.specification["seds"] = 1
    assert project.run() == 2
    error = capsys.readouterr().err
    assert error == f"error: {project.path}: there is no key 'seds' here. Did you mean 'seeds'?\n"


def test_data_are_generated_once_and_prepared(project, capsys):
    (project.scripts / "count.py").write_text(
        "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    )
    small = {"train_images": 12, "validation_images": 4, "image_size": 64, "num_leaves": 3, "min_objects": 1}
    small.update(co_label_rate=0.0, confusion_rate=0.0)
    prepare = ["count.py {data}/counted.txt {seed} 0"]
    project.specification["data"] = {
        "made": {**small, "formats": ["openimages"], "prepare": prepare},
        "anew": {**small, "formats": ["openimages", "coco"], "seed": "run"},
    }
    project.specification["seeds"] = [1, 2]
    assert project.run("--dry-run") == 0
    out = capsys.readouterr().out
    assert [line.split()[-3:] for line in out.splitlines() if "data " in line] == [
        [name, "16", "images"] for name in ("made:", "anew-seed1:", "anew-seed2:")
    ]
    assert project.run() == 0
    data = project.output / "data"
    assert sorted(path.name for path in data.iterdir()) == ["anew-seed1", "anew-seed2", "made"]
    for name in ("made", "anew-seed2"):
        assert (data / name / "shapes" / "stores" / "train").is_dir()
    assert json.loads((data / "anew-seed2/shapes/generation.json").read_text())["options"]["seed"] == 2
    roots = {call["options"]["DATASETS.ROOT"] for call in project.calls()}
    assert roots == {str(data / name) for name in ("made", "anew-seed1", "anew-seed2")}
    assert (data / "made/shapes/counted.txt").read_text() == "1"

    project.specification["seeds"] = [1, 2, 3]
    project.specification["data"]["made"]["prepare"] = [*prepare, "count.py {data}/counted.txt x 0"]
    assert project.run("--only", "second") == 0
    assert (data / "made/shapes/counted.txt").read_text() == "111x"[-3:]
    project.specification["data"]["made"]["imbalance"] = 2
    project.specification["data"]["made"]["prepare"] = ["count.py {data}/counted.txt y 4"]
    assert project.run("--only", "second") == 1
    error = capsys.readouterr().err
    assert "FAILED made/second/seed1: its data: count.py" in error and "exit status 4: no output" in error
    assert "anew" not in error and (data / "made/shapes/counted.txt").read_text().startswith("y")


def test_lvis_data_have_stores_where_their_data_sets_are(project):
    small = {
        **{"train_images": 12, "validation_images": 4, "image_size": 64, "num_leaves": 3, "min_objects": 1},
        **{"co_label_rate": 0.0, "confusion_rate": 0.0},
    }
    key = "DATASETS.STATISTICS"
    project.specification["seeds"] = [1]
    made = project.output / "data" / "made"

    def run(*formats):
        project.specification["data"] = {"made": {**small, "formats": list(formats)}}
        project.specification["rows"][0]["overrides"][key] = "{data}/stores"
        assert project.run("--only", "first") == 0
        options = project.calls()[0]["options"]
        return AnnotationStore.open(made / "shapes_lvis/stores/train"), options

    store, options = run("lvis")
    assert options["DATASETS.ROOT"] == str(made)
    assert options[key] == str(store.path.parent) == str(made / "shapes_lvis/stores")
    assert store.has_masks and not store.has_hierarchy and store.num_classes == 3
    assert [path.name for path in made.iterdir()] == ["shapes_lvis"]
    assert (made / "shapes_lvis/stores/validation").is_dir() and (made / "shapes_lvis/lvis").is_dir()

    store, options = run("openimages", "lvis")
    assert options[key] == str(made / "shapes/stores")
    assert store.image_root == made / "shapes/images/train" and store.has_masks
    assert (made / "shapes/stores/validation").is_dir()

    store, options = run("lvis")  # the stores alone were there
    assert options[key] == str(store.path.parent) and len(store) == 12
    assert store.image_root == made / "shapes_lvis/images/train" and not (made / "shapes").exists()

    project.specification["data"] = {"made": {**small, "formats": ["openimages"]}}
    assert project.run("--only", "first") == 0
    assert [path.name for path in made.iterdir()] == ["shapes"]


def test_an_output_in_use_is_refused(project, monkeypatch, capsys):
    monkeypatch.setattr("longtail_det2.ablation.layout._WAIT", 0.3)
    with locked(project.output):
        assert project.run() == 2
        assert (
            f"{project.output} is in use by another command (process {os.getpid()}" in capsys.readouterr().err
        )
        with pytest.raises(ConfigError, match="in use"), locked(project.output):
            pass
    assert project.run("--report") == 0


def test_a_result_that_is_damaged_does_not_count(project):
    project.specification["seeds"] = [1]
    assert project.run() == 0
    project.calls()
    (project.output / "runs/real/second/seed1/result.json").write_text('{"hash": ')
    assert project.run() == 0
    assert lines(project.calls()) == [("second", 1, False)]
    assert Layout(project.output).job("a") == project.output / "runs" / "a"


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_where_it_was(project, kill):
    project.specification["seeds"] = [1]
    project.specification["overrides"].update({"SOLVER.MAX_ITER": 60, "SOLVER.WARMUP_FACTOR": 0.05})
    script = str(project.scripts / "run_ablation.py")
    command = [sys.executable, script, str(project.write()), "--output", str(project.output)]
    process = subprocess.Popen(command, cwd=project.folder)
    steps = project.output / "runs/real/second/seed1/run/steps.txt"
    wait_for(lambda: steps.exists() and len(steps.read_text().split()) > 10)
    process.send_signal(kill)
    process.wait(30)
    calls = project.calls()
    wait_for(lambda: not alive(calls[-1]["pid"]))  # the training ends with the command
    done = steps.read_text().split()
    assert 10 < len(done) < 60 and "first" in {line for line, _, _ in lines(calls)}
    assert project.run("--dry-run") == 0
    assert project.run() == 0
    again = project.calls()
    assert lines(again) == [("second", 1, False)] and again[0]["flags"] == ["--resume"]
    assert [int(step) for step in steps.read_text().split()] == list(range(60))
    result = project.results()["second", 1]
    assert result["attempts"] == 2 and not math.isnan(result["cpu_seconds"])


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
