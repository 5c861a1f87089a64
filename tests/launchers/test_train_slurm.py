"""The plain sbatch script, with stand-ins for Slurm's commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "launchers" / "train_slurm.sh"
JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NODELIST": "node[3-4]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "8",
}
SRUN = 'while [[ "$1" == --* ]]; do shift; done; exec "$@"'
SCONTROL = 'if [ "$1" = show ]; then printf "node3\\nnode4\\n"; else echo "scontrol $*"; fi'


def run(arguments, **extra):
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env={**os.environ, **JOB, **extra}, capture_output=True, text=True
    )


def test_torchrun_call_of_a_node(cluster_commands):
    cluster_commands(srun=SRUN, scontrol=SCONTROL, torchrun='printf "%s\\n" "$@"')
    done = run(["--config-file", "a b.yaml", "SEED", "1"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "8"),
        *("--master-addr", "node3", "--master-port", "21234"),
        *("scripts/train_net.py", "--config-file", "a b.yaml", "SEED", "1"),
    ]


def test_a_requeued_job_resumes(cluster_commands):
    cluster_commands(srun=SRUN, scontrol=SCONTROL, torchrun='printf "%s\\n" "$@"')
    done = run(["--config-file", "c"], SLURM_RESTART_COUNT="1", PROCESSES_PER_NODE="3")
    lines = done.stdout.splitlines()
    assert lines[lines.index("scripts/train_net.py") :] == [
        "scripts/train_net.py",
        "--resume",
        "--config-file",
        "c",
    ]
    assert lines[lines.index("--nproc-per-node") + 1] == "3"


def test_exit_code_of_the_training_is_kept(cluster_commands):
    cluster_commands(srun=SRUN, scontrol=SCONTROL, torchrun="exit 7")
    assert run(["--config-file", "c"]).returncode == 7


def test_time_nearly_up_requeues(cluster_commands):
    cluster_commands(srun=SRUN, scontrol=SCONTROL, torchrun="echo started; sleep 2; echo ended")
    process = subprocess.Popen(
        ["bash", SCRIPT, "--config-file", "c"], env={**os.environ, **JOB}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR2)
    rest = process.communicate(timeout=30)[0]
    assert "scontrol requeue 1234" in rest
    assert "ended" in rest and process.returncode == 0  # the step is waited for


def test_outside_a_job_there_is_a_message():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch" in done.stderr


@pytest.mark.parametrize("script", ["scripts/launchers/train_slurm.sh", "scripts/setup_venv.sh", ".ci/run"])
def test_shell_scripts_pass_shellcheck(repository, script):
    shellcheck = shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, repository / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
