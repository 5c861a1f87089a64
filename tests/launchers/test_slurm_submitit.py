"""The submitit launcher: its command lines, what it asks Slurm for, and real jobs on this machine."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtail_det2.cli import main

pytest.importorskip("submitit")
LAUNCHER = Path(__file__).resolve().parents[2] / "scripts" / "launchers" / "slurm_submitit.py"
TRAIN = ["--config-file", "shapes/faster_rcnn_tiny_softmax_shapes.yaml"]


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("slurm_submitit", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["slurm_submitit"] = module  # where dataclasses look for the annotations' names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["slurm_submitit"]


def test_requeued_job_resumes_and_the_flag_precedes_the_options(launcher, monkeypatch):
    task = launcher.Training("train.py", ("--config-file", "c", "SEED", "1"))
    assert task.command()[1:] == ["train.py", "--config-file", "c", "SEED", "1"]
    again = task.checkpoint().function
    assert again.command()[1:3] == ["train.py", "--resume"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert task.command() == again.command()
    assert launcher.Training("train.py", ("--resume",)).command().count("--resume") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpus_per_node=1"], "arguments are missing"),
        (["gpus_per_node=1", "--script", "scripts/absent.py", "--", *TRAIN], "is no file"),
        (["--", *TRAIN], "tasks_per_node=N for training on CPUs"),
        (["gpus_per_node=1", "account", "--", *TRAIN], "'account' is not of the form"),
    ],
)
def test_wrong_command_lines(launcher, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        launcher.parse_arguments(arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_slurm_is_asked_for(launcher, monkeypatch, tmp_path, capsys):
    commands = {
        "srun": "exit 1",
        "sbatch": f'cp "${{@: -1}}" {tmp_path}/job.sh; echo "Submitted batch job 12"',
    }
    for name, content in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    status = launcher.main(
        [
            *("nodes=2", "gpus_per_node=8", "mem_gb=400", "timeout_min=600", "slurm_partition=gpu"),
            *("slurm_account=vision", "slurm_constraint=h200"),
            *("--folder", str(tmp_path / "logs"), "--", *TRAIN),
        ]
    )
    assert status == 0 and "job 12" in capsys.readouterr().out
    script = (tmp_path / "job.sh").read_text(encoding="utf-8")
    for line in (
        *("nodes=2", "gpus-per-node=8", "cpus-per-task=8", "ntasks-per-node=8", "mem=400GB", "time=600"),
        *("partition=gpu", "account=vision", "constraint=h200", "requeue", "signal=USR2@120"),
    ):
        assert f"#SBATCH --{line}\n" in script, line
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["gpus_per_node=1"], "srun"),
        (["nodes=2", "--cluster", "local"], "one node"),
        (["node=1", "--cluster", "local"], "node"),
    ],
)
def test_what_cannot_be_submitted_is_told(launcher, monkeypatch, tmp_path, capsys, arguments, named):
    monkeypatch.setenv("PATH", str(tmp_path))
    more = ["--folder", str(tmp_path), "--", *TRAIN]
    assert launcher.main(["tasks_per_node=1", *arguments, *more]) == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def submit(tmp_path):
    """Function: (iterations, options...) -> the launcher, waiting for a job of two processes here."""
    shapes = ["--output", str(tmp_path / "shapes"), "--formats", "openimages", "--stores", "--quiet"]
    sizes = ["--train-images", "16", "--validation-images", "4", "--num-leaves", "8", "--imbalance", "4"]
    assert main(["shapes", *shapes, *sizes, "--min-objects", "1", "--co-label-rate", "0"]) == 0
    train = [
        *(*TRAIN, "DATASETS.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run")),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "MODEL.DEVICE", "cpu"),
        *("MODEL.TINY_BACKBONE.STAGE_CHANNELS", "4,8,8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    ]
    started = []

    def start(iterations, *options):
        command = [sys.executable, str(LAUNCHER), "tasks_per_node=2", "--cluster", "local"]
        command += ["--folder", str(tmp_path / "logs"), "--wait", "--", *train]
        command += ["SOLVER.MAX_ITER", str(iterations), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
def test_two_processes_train_and_a_preempted_job_goes_on(submit, tmp_path):
    output = tmp_path / "run"
    process = submit(60, "SOLVER.CHECKPOINT_PERIOD", "10")
    wait_for(lambda: (output / "last_checkpoint").is_file())
    [controller] = children_of(process.pid)
    for task in children_of(controller):  # what Slurm sends before it takes the nodes away
        for pid in (task, *children_of(task)):
            os.kill(pid, signal.SIGUSR2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    log = (output / "log.txt").read_text(encoding="utf-8")
    assert "World size: 2" in log
    assert "Continuing at iteration" in log
    assert (output / "model_final.pth").is_file()


@pytest.mark.slow
def test_a_failing_training_fails_the_job(submit, tmp_path):
    process = submit(2, "SOLVER.OPTIMIZER", "Adam")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "training ended with exit code" in err
    [log] = (tmp_path / "logs").glob("*/*_0_log.err")
    assert "there is no optimizer 'Adam'" in log.read_text(encoding="utf-8")


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def children_of(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
