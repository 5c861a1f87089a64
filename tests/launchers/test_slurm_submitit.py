"""The submitit launcher: its command lines, what it asks Slurm for, and real jobs on this machine."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_one_node_needs_no_address(launcher):
    task = launcher.Torchrun("train.py", ("--config-file", "c"), processes=2, port=0)
    command = task.command(1, 0, "here")
    assert command[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("train.py", "--config-file", "c"),
    ]


def test_several_nodes_meet_at_the_first(launcher):
    task = launcher.Torchrun("train.py", (), processes=8, port=29500)
    command = task.command(2, 1, "node-a")
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=node-a", "--master-port=29500"} <= set(command)


def test_requeued_job_resumes_and_the_flag_precedes_the_options(launcher):
    task = launcher.Torchrun("train.py", ("--config-file", "c", "SEED", "1"), processes=1, port=0)
    again = task.checkpoint().function
    assert not task.resume and again.resume
    command = again.command(1, 0, "here")
    assert command[command.index("train.py") + 1] == "--resume"
    given = launcher.Torchrun("train.py", ("--resume",), processes=1, port=0, resume=True)
    assert given.command(1, 0, "here").count("--resume") == 1


def test_torchrun_takes_the_command_line(launcher):
    from torch.distributed.run import get_args_parser

    task = launcher.Torchrun("train.py", ("--config-file", "c"), processes=0, port=29500)
    args = get_args_parser().parse_args(task.command(2, 1, "node-a")[3:])
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "gpu")
    assert args.training_script == "train.py" and args.training_script_args == ["--config-file", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus-per-node", "1"], "arguments are missing"),
        (["--gpus-per-node", "1", "--script", "scripts/absent.py", "--", *TRAIN], "is no file"),
        (["--", *TRAIN], "--processes-per-node for training on CPUs"),
        (["--gpus-per-node", "1", "--nodes", "0", "--", *TRAIN], "at least 1"),
        (["--gpus-per-node", "1", "--cluster", "local", "--nodes", "2", "--", *TRAIN], "has one node"),
        (["--gpus-per-node", "1", "--slurm", "account", "--", *TRAIN], "'account' is not of the form"),
    ],
)
def test_wrong_command_lines(launcher, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        launcher.parse_arguments(arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_slurm_is_asked_for(launcher, cluster_commands, tmp_path, capsys):
    folder = cluster_commands(
        srun="exit 1", sbatch=f'cp "${{@: -1}}" {tmp_path}/job.sh; echo "Submitted batch job 12"'
    )
    assert folder.is_dir()
    status = launcher.main(
        [
            *("--nodes", "2", "--gpus-per-node", "8", "--cpus-per-task", "64", "--mem-gb", "400"),
            *("--partition", "gpu", "--time", "600", "--slurm", "account=vision", "constraint=h200"),
            *("--folder", str(tmp_path / "logs"), "--", *TRAIN),
        ]
    )
    assert status == 0 and "job 12" in capsys.readouterr().out
    script = (tmp_path / "job.sh").read_text(encoding="utf-8")
    for line in (
        *("nodes=2", "gpus-per-node=8", "cpus-per-task=64", "ntasks-per-node=1", "mem=400GB", "time=600"),
        *("partition=gpu", "account=vision", "constraint=h200", "requeue", "signal=USR2@120"),
    ):
        assert f"#SBATCH --{line}\n" in script, line


def test_a_machine_without_slurm_is_told(launcher, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher.main(["--gpus-per-node", "1", "--folder", str(tmp_path), "--", *TRAIN]) == 2
    assert "srun" in capsys.readouterr().err


@pytest.fixture
def submit(tmp_path):
    """Function: (train arguments...) -> the launcher's process, waiting for a job of two processes here."""
    started = []

    def start(*train):
        command = [sys.executable, str(LAUNCHER), "--cluster", "local", "--processes-per-node", "2"]
        command += ["--folder", str(tmp_path / "logs"), "--wait", "--", *train]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
def test_two_processes_train_and_a_preempted_job_goes_on(submit, tiny_training, tmp_path):
    output = tmp_path / "run"
    process = submit(*tiny_training(output, 60), "SOLVER.CHECKPOINT_PERIOD", "10")
    wait_for(lambda: (output / "last_checkpoint").is_file())
    os.kill(task_of(process.pid), signal.SIGUSR2)  # what Slurm sends before it takes the nodes away
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    log = (output / "log.txt").read_text(encoding="utf-8")
    assert "World size: 2" in log
    assert "Continuing at iteration" in log
    assert (output / "model_final.pth").is_file()


@pytest.mark.slow
def test_a_failing_training_fails_the_job(submit, tiny_training, tmp_path):
    process = submit(*tiny_training(tmp_path / "run", 2), "SOLVER.OPTIMIZER", "Adam")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "torchrun ended with exit code" in err
    [log] = (tmp_path / "logs").glob("*/*_log.err")
    assert "there is no optimizer 'Adam'" in log.read_text(encoding="utf-8")


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def task_of(launcher_pid):
    """The submitit task below its controller below the launcher."""
    pid = launcher_pid
    for _ in range(2):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        pid = int(children[0])
    return pid
