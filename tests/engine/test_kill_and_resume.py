"""Training killed at random moments and resumed equals uninterrupted training, to the bit.

LONGTAIL_DET2_KILLS says how often (20 for the whole check). The runs take turns between the YAML and the lazy
form of one config, and resumed runs load images with another number of workers than the killed ones.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from runs import SECONDS, differences, finish, kill, start_ranks

from longtail_det2.engine.sampling_log import SAMPLED_CLASSES_FILE

KILLS = int(os.environ.get("LONGTAIL_DET2_KILLS", "4"))
FINAL = "model_final.pth"


def log_of(run):
    """What the processes of a run print."""
    return run.with_name(f"{run.name}.txt")


def start(args, run, workers, *flags):
    """A training process with a group of its own, so that its workers can be killed with it."""
    if args.config_file.endswith(".yaml"):
        options = ["OUTPUT_DIR", str(run), "DATALOADER.NUM_WORKERS", str(workers)]
    else:
        options = [f"train.output_dir={run}", f"dataloader.train.num_workers={workers}"]
    command = [sys.executable, "-m", "longtail_det2.cli", "train", "--config-file", args.config_file, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log_of(run).open("ab") as log:
        return subprocess.Popen(
            [*command, *args.opts, *options], stdout=log, stderr=log, env=environment, start_new_session=True
        )


def wait_until_started(process, run):
    log = run / "log.txt"
    while process.poll() is None:
        if log.is_file() and "Starting training from iteration" in log.read_text(errors="replace"):
            return
        time.sleep(0.01)


def seconds_of(args, run):
    """Trains to the end; the seconds from the first iteration to the last checkpoint."""
    process = start(args, run, 0)
    wait_until_started(process, run)
    begun = time.monotonic()
    while process.poll() is None and not (run / FINAL).is_file():
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    finish([process], log_of(run))
    return seconds


def interrupt(args, run, workers, delay):
    """Kills a run `delay` seconds after its first iteration, earlier if it was finished by then."""
    while True:
        process = start(args, run, workers)
        wait_until_started(process, run)
        time.sleep(delay)
        if process.poll() is None:
            kill([process])
        elif process.returncode:
            finish([process], log_of(run))
        if not (run / FINAL).is_file():
            return
        shutil.rmtree(run)
        delay *= 0.7


@pytest.mark.slow
def test_killed_and_resumed_training_equals_uninterrupted_training(yaml_args, lazy_args, tmp_path):
    """With TSD's branch, which has a plain one in it; without sampling, with a scale that is frozen; and
    of a classifier of images, with class-aware sampling."""
    config = "projects/TSD/configs/shapes/faster_rcnn_tiny_tsd_shapes"
    free = "projects/SamplingFree/configs/shapes/fcos_tiny_sampling_free_shapes.yaml"
    images = "projects/DistributionBalanced/configs/shapes/classifier_tiny_distribution_balanced_shapes.yaml"
    often = ("SOLVER.CHECKPOINT_PERIOD", "3", "SEED", "1")
    period = "train.checkpointer.period=3"
    forms = {
        "yaml": yaml_args(*often, max_iter=16, config=f"{config}.yaml"),
        "lazy": lazy_args(period, "train.seed=1", max_iter=16, config=f"{config}.py", tiny=False),
        "free": yaml_args(*often, "MODEL.DENSE_HEAD.GUIDED_WARMUP", "8", max_iter=16, config=free),
        "images": yaml_args(*often, max_iter=40, config=images),
    }
    seconds = {name: seconds_of(args, tmp_path / f"whole-{name}") for name, args in forms.items()}
    moments = random.Random(1)
    for number in range(KILLS):
        name, workers = list(forms)[number % len(forms)], number % 2
        run = tmp_path / f"killed-{number}"
        interrupt(forms[name], run, workers, moments.uniform(0, seconds[name]))
        finish([start(forms[name], run, 1 - workers, "--resume")], log_of(run))
        assert differences(tmp_path / f"whole-{name}", run) == [], f"kill {number}, {name}"


@pytest.mark.slow
def test_two_processes_killed_inside_the_second_phase(yaml_args, repository, tmp_path):
    """SIGKILL to all, resumed: all is equal to the bit, frequencies and what the loss counted included."""
    phases = "(('UniformTrainingSampler', 8), ('SoftBalanceTrainingSampler', 20, {'lambda_': 0.5}))"

    def command(run, workers, *flags):
        options = [
            *("DATALOADER.SAMPLER_TRAIN", "PhasedTrainingSampler", "DATALOADER.PHASES", phases),
            *("SEED", "2", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.CHECKPOINT_PERIOD", "3"),
            *("DATALOADER.ASPECT_RATIO_GROUPING", "True", "DATALOADER.NUM_WORKERS", str(workers)),
            *("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "SeesawLoss"),
            *("SOLVER.LOG_PERIOD", "20", "SOLVER.BASE_LR", "0.002"),
        ]
        args = yaml_args(*options, "DATASETS.TEST", "()", "OUTPUT_DIR", str(run), max_iter=28)
        script = repository / "scripts/train_net.py"
        return [script, *flags, "--config-file", args.config_file, *args.opts]

    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "output.txt"
    finish(start_ranks(command(whole, 0), log), log)
    processes = start_ranks(command(killed, 2), log)
    end = time.monotonic() + SECONDS
    while not (killed / "model_0000011.pth").is_file():  # four iterations into the second phase
        assert all(process.poll() is None for process in processes) and time.monotonic() < end
        time.sleep(0.01)
    kill(processes)
    assert not (killed / "model_final.pth").is_file()
    finish(start_ranks(command(killed, 2, "--resume"), log), log)
    assert differences(whole, killed) == []
    assert (whole / SAMPLED_CLASSES_FILE).read_text() == (killed / SAMPLED_CLASSES_FILE).read_text()
    phases = json.loads((whole / SAMPLED_CLASSES_FILE).read_text())["phases"]
    assert [phase["images_drawn"] for phase in phases] == [32, 80]  # over both processes
    lines = [json.loads(line) for line in (killed / "metrics.json").read_text().splitlines()]
    assert {line["iteration"]: line["phase"] for line in lines if "phase" in line} == {19: 2, 27: 2}
