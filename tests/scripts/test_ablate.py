"""scripts/ablate.py with a fake trainer, and once with real ones."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROJECTS = sorted(SCRIPTS.parent.glob("projects/*/ablations/*.yaml"))
SHORT = {
    **{"SOLVER.MAX_ITER": 4, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.CHECKPOINT_PERIOD": 2, "MODEL.DEVICE": "cpu"},
    "MODEL.TINY_BACKBONE.STAGE_CHANNELS": [4, 8, 8],
}
# Its metric is SOLVER.BASE_LR and something of the seed, or of TEST.DETECTIONS_PER_IMAGE in an evaluation.
FAKE_TRAINER = """
import json, sys, time
from pathlib import Path
flag, words = sys.argv[4], sys.argv[5:]
options = dict(zip(words[::2], words[1::2]))
run = Path(options["OUTPUT_DIR"])
run.mkdir(parents=True, exist_ok=True)
with open(Path(__file__).with_name("calls"), "a") as calls:
    calls.write(f"{run.parent.parent.name} {flag}\\n")
if options["MODEL.DEVICE"] == "broken":
    sys.exit("error: the device is broken")
steps = run / "steps"
while flag == "--resume" and (not steps.exists() or len(steps.read_text()) < 4):
    time.sleep(float(options["SOLVER.WARMUP_FACTOR"]))
    with steps.open("a") as stream:
        stream.write(".")
if flag == "--eval-only":
    assert Path(options["MODEL.WEIGHTS"]).read_text() == "weights"
(run / "model_final.pth").write_text("weights")
value = float(options["SOLVER.BASE_LR"]) + 0.01 * int(options["SEED"]) ** float(options["SOLVER.MOMENTUM"])
value += 0.001 * int(options["TEST.DETECTIONS_PER_IMAGE"])
(run / "inference" / "some").mkdir(parents=True, exist_ok=True)
summary = {"bbox": {"mAP50": value, "mAP50_tail": None}, "lvis_bbox": {"AP": value}}
(run / "inference" / "some" / "results.json").write_text(json.dumps({"summary": summary}))
"""
BASE = {"SOLVER.BASE_LR": 0.1, "SOLVER.MOMENTUM": 1.0, "SOLVER.WARMUP_FACTOR": 0.0, "MODEL.DEVICE": "cpu"}


class Ablation:
    """A table in a folder, and the command on it."""

    def __init__(self, folder, monkeypatch):
        spec = importlib.util.spec_from_file_location("ablate", SCRIPTS / "ablate.py")
        self.module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "ablate", self.module)
        spec.loader.exec_module(self.module)
        monkeypatch.setattr(self.module, "COMMAND", [sys.executable, str(folder / "trainer.py")])
        self.folder, self.output = folder, folder / "out put"
        (folder / "trainer.py").write_text(FAKE_TRAINER)
        self.table = {
            "title": "A table",
            "config": "shapes/faster_rcnn_tiny_softmax_shapes.yaml",
            "overrides": {**BASE, "TEST.DETECTIONS_PER_IMAGE": 100},
            "seeds": [1, 2, 3],
            "baseline": "first",
            "metrics": {"mAP50": "all", "lvis_bbox/AP": "AP"},
            "data": {"real": {"folder": str(folder)}},
            "rows": {
                "first": {"label": "the first"},
                "few": {"weights": "first", "label": "a|b", "overrides": {"TEST.DETECTIONS_PER_IMAGE": 50}},
                "second": {"label": "the second", "overrides": {"SOLVER": {"BASE_LR": 0.3, "MOMENTUM": 2.0}}},
            },
        }

    def arguments(self, *more):
        path = self.folder / "table.yaml"
        path.write_text(yaml.safe_dump(self.table, sort_keys=False))
        return [str(path), "--output", str(self.output), *more]

    def run(self, *more):
        return self.module.main(self.arguments(*more))

    def calls(self):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    return Ablation(tmp_path, monkeypatch)


def test_values_and_paired_differences(ablation):
    assert ablation.run("--jobs", "2") == 0
    frame = ablation.module.pd.read_csv(ablation.output / "results.csv")
    assert set(frame["line"]) == {"first", "few", "second"} and len(frame) == 9
    first, second = (
        frame[frame["line"] == line].sort_values("seed")["mAP50"] for line in ("first", "second")
    )
    assert first.tolist() == pytest.approx([21, 22, 23]) and second.tolist() == pytest.approx([41, 44, 49])
    assert frame["mAP50_tail"].isna().all()
    interval = ablation.module.stats.ttest_rel(second.to_numpy(), first.to_numpy()).confidence_interval()
    table = (ablation.output / "table.md").read_text()
    assert f"**{22 + 2 / 3:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]**" in table
    assert "| the first  | 3   | 22.0 ± 1.0 " in table and "| a\\|b" in table
    assert (ablation.output / "differences.png").stat().st_size > 1000


def test_finished_steps_are_not_run_again(ablation):
    ablation.table["seeds"] = [1]
    assert ablation.run() == 0
    assert ablation.calls() == ["few --eval-only", "first --resume", "second --resume"]
    assert ablation.run("--seeds", "1") == 0 and ablation.calls() == []
    ablation.table["rows"]["second"]["overrides"] = {"SOLVER.BASE_LR": 0.2}
    assert ablation.run() == 0 and ablation.calls() == ["second --resume"]
    ablation.table["rows"]["few"]["overrides"] = {"TEST.DETECTIONS_PER_IMAGE": 10}
    assert ablation.run("--only", "first") == 0 and ablation.calls() == ["few --eval-only"]


def test_failures_do_not_stop_the_others(ablation, capsys):
    ablation.table["rows"]["first"]["overrides"] = {"MODEL.DEVICE": "broken"}
    ablation.table["seeds"] = [1]
    assert ablation.run() == 1
    assert "real/first/seed1: error: the device is broken" in capsys.readouterr().out
    assert ablation.module.pd.read_csv(ablation.output / "results.csv")["line"].tolist() == ["second"]


def test_a_folder_is_worked_in_by_one_process(ablation, capsys):
    import fcntl

    assert ablation.run("--only", "second", "--seeds", "1") == 0 and ablation.calls()
    [result] = ablation.output.glob("runs/real/second/seed1-*/result.json")
    result.unlink()
    with result.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ablation.run("--only", "second", "--seeds", "1") == 1
    assert "another process" in capsys.readouterr().out and ablation.calls() == []


def test_interrupted_training_goes_on(ablation):
    ablation.table["overrides"]["SOLVER.WARMUP_FACTOR"] = 0.4
    script = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import ablate; "
    script += f"ablate.COMMAND = {ablation.module.COMMAND!r}; sys.exit(ablate.main())"
    arguments = ablation.arguments("--only", "second", "--seeds", "1")
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], start_new_session=True)
    while process.poll() is None and not (
        found := list(ablation.output.glob("runs/real/second/*/run/steps"))
    ):
        time.sleep(0.05)
    [steps] = found
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() and len(steps.read_text()) < 4
    assert ablation.run("--only", "second", "--seeds", "1") == 0
    assert len(steps.read_text()) == 4


def test_data_is_made_once_per_seed(ablation):
    (ablation.folder / "make.py").write_text("import sys; open(sys.argv[1], 'x').write(sys.argv[2])")
    ablation.table["data"] = {
        "made": {"commands": [f"{sys.executable} {ablation.folder}/make.py {{data}}/file {{seed}}"]}
    }
    assert ablation.run("--only", "second", "--seeds", "1", "2") == 0
    assert [(ablation.output / "data" / f"made-seed{n}" / "file").read_text() for n in (1, 2)] == ["1", "2"]
    ablation.table["rows"]["second"]["overrides"]["SOLVER"]["BASE_LR"] = 0.2
    assert ablation.run("--only", "second", "--seeds", "1", "2") == 0  # "x" would fail for a file that exists


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda table: table.pop("title"), "title"),
        (lambda table: table["rows"]["first"].update(lable="x"), "lable"),
        (lambda table: table["rows"]["second"].pop("label"), "rows.second.label"),
        (lambda table: table.update(baseline="third"), "third"),
        (lambda table: table.update(seeds=["one"]), "seeds"),
        (lambda table: table["rows"]["first"].update(data=["other"]), "rows.first.data"),
        (lambda table: table["rows"]["few"].update(weights="few"), "rows.few.weights"),
        (lambda table: table["rows"]["few"].update(data=["real"]), "rows.few"),
        (lambda table: table["data"].update(bad={}), "data.bad"),
        (lambda table: table["overrides"].update({"SOLVER.BASE_L": 1}), "SOLVER.BASE_L"),
        (lambda table: table.update(config="none.yaml"), "none.yaml"),
        (lambda table: table["data"].update(bad={"commands": ["false"]}), "data bad"),
        (lambda table: table["data"].update(bad={"commands": ["no_such_program"]}), "no_such_program"),
    ],
)
def test_errors_name_the_key(ablation, capsys, change, named):
    change(ablation.table)
    assert ablation.run() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error and named in error


def test_unknown_metrics_are_named(ablation, capsys):
    ablation.table["metrics"] = {"mAP5": "all"}
    assert ablation.run("--only", "second", "--seeds", "1") == 2
    assert "mAP50" in capsys.readouterr().err


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_tables_of_the_projects(ablation, path):
    table = ablation.module.load_table(path)
    trainings = ablation.module.make_trainings(table, ablation.output, table.seeds)
    steps = {(step.data, step.row, step.seed) for one in trainings for step in one}
    results = path.parents[1] / "results" / f"{path.stem}.csv"
    if not results.is_file():
        pytest.skip("this table has not been run to the end yet")
    frame = ablation.module.pd.read_csv(results)
    assert steps == set(frame[["data", "line", "seed"]].itertuples(index=False, name=None))
    assert len(ablation.module.compare(table, frame)) == len(steps) // len(table.seeds) * len(table.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [[], ["--slurm", "timeout_min=5", "--cluster", "local"]])
def test_real_trainings(tmp_path, executor):
    shapes = "--train-images 48 --validation-images 6 --image-size 64 --num-leaves 4 --min-objects 1"
    generate = "longtail-det2 shapes --output {data}/shapes --seed {seed} --stores --formats openimages"
    table = {
        **{"title": "Hardly trained", "config": "shapes/faster_rcnn_tiny_softmax_shapes.yaml", "seeds": [1]},
        **{"baseline": "softmax", "metrics": {"mAP50_leaves": "leaves", "mAP50": "all"}},
        "data": {"shapes": {"commands": [f"{generate} {shapes} --co-label-rate 0"]}},
        "rows": {
            "softmax": {"label": "softmax", "overrides": SHORT},
            "ten": {"weights": "softmax", "label": "ten", "overrides": {"TEST.DETECTIONS_PER_IMAGE": 10}},
            "sigmoid": {
                "label": "sigmoid",
                "config": "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml",
                "overrides": SHORT,
            },
        },
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    command = [sys.executable, str(SCRIPTS / "ablate.py"), "table.yaml", "--output", "out put", *executor]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "out put" / "results.csv").read_text().splitlines()))
    assert sorted(row["line"] for row in rows) == ["sigmoid", "softmax", "ten"]
    assert all(0 <= float(row["mAP50"]) <= 100 for row in rows)
    [final] = tmp_path.glob("out put/runs/shapes/softmax/seed1-*/run")
    assert sorted(one.name for one in final.glob("*.pth")) == ["model_final.pth"]
    run = json.loads((final / "run.json").read_text())
    assert run["seed"] == 1
