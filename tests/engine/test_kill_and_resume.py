"""Training killed at random moments and resumed equals uninterrupted training, to the bit.

LONGTAIL_DET2_KILLS says how often (20 for the whole check). The runs take turns between the YAML and the lazy
form of one config, and resumed runs load images with another number of workers than the killed ones.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from runs import differences

KILLS = int(os.environ.get("LONGTAIL_DET2_KILLS", "3"))
FINAL = "model_final.pth"


def start(args, run, workers, *flags):
    """A training process with a group of its own, so that its workers can be killed with it."""
    if args.config_file.endswith(".yaml"):
        options = ["OUTPUT_DIR", str(run), "DATALOADER.NUM_WORKERS", str(workers)]
    else:
        options = [f"train.output_dir={run}", f"dataloader.train.num_workers={workers}"]
    command = [sys.executable, "-m", "longtail_det2.cli", "train", "--config-file", args.config_file, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(f"{run}.txt", "ab") as log:
        return subprocess.Popen(
            [*command, *args.opts, *options], stdout=log, stderr=log, env=environment, start_new_session=True
        )


def wait_until_started(process, run):
    log = run / "log.txt"
    while process.poll() is None:
        if log.is_file() and "Starting training from iteration" in log.read_text(errors="replace"):
            return
        time.sleep(0.01)


def finish(process, run):
    assert process.wait() == 0, run.with_name(f"{run.name}.txt").read_text()


def seconds_of(args, run):
    """Trains to the end; the seconds from the first iteration to the last checkpoint."""
    process = start(args, run, 0)
    wait_until_started(process, run)
    begun = time.monotonic()
    while process.poll() is None and not (run / FINAL).is_file():
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    finish(process, run)
    return seconds


def kill(args, run, workers, delay):
    """Kills a run `delay` seconds after its first iteration, earlier if it was finished by then."""
    while True:
        process = start(args, run, workers)
        wait_until_started(process, run)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        elif process.returncode:
            finish(process, run)
        if not (run / FINAL).is_file():
            return
        shutil.rmtree(run)
        delay *= 0.7


@pytest.mark.slow
def test_killed_and_resumed_training_equals_uninterrupted_training(yaml_args, lazy_args, tmp_path):
    forms = {
        "yaml": yaml_args("SOLVER.CHECKPOINT_PERIOD", "3", "SEED", "1", max_iter=16),
        "lazy": lazy_args("train.checkpointer.period=3", "train.seed=1", max_iter=16),
    }
    seconds = {name: seconds_of(args, tmp_path / f"whole-{name}") for name, args in forms.items()}
    moments = random.Random(1)
    for number in range(KILLS):
        name, workers = list(forms)[number % 2], (number % 4) // 2
        run = tmp_path / f"killed-{number}"
        kill(forms[name], run, workers, moments.uniform(0, seconds[name]))
        finish(start(forms[name], run, 1 - workers, "--resume"), run)
        assert differences(tmp_path / f"whole-{name}", run) == [], f"kill {number}, {name}"
