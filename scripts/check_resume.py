"""Kills training with SIGKILL at random moments, resumes it, and compares with an uninterrupted run.

Compared, bit for bit, are the weights, the optimizer's state, every iteration's losses, and the lines of
metrics.json. The runs take turns between the YAML and the lazy form of one config, and resumed runs load
images with another number of workers than the killed ones. Exit code 0 if all are equal, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longtail_det2.cli import main as run_command

SCRIPTS = Path(__file__).resolve().parent
CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes"
ITERATIONS = 16
CHECKPOINT_PERIOD = 3
BATCH_SIZE = 4
STARTED = "Starting training from iteration"
LAST = "model_final.pth"


@dataclass(frozen=True)
class Form:
    """One of the two forms of the config.

    Attributes:
        name: "yaml" or "lazy".
        root: folder of the check.
    """

    name: str
    root: Path

    def command(self, run: Path, workers: int, resume: bool) -> list[str]:
        """The command line of a training run."""
        data = {split: self.root / "shapes/stores" / split for split in ("train", "validation")}
        flags = ["--resume"] if resume else []
        if self.name == "yaml":
            return [
                *(sys.executable, str(SCRIPTS / "train_net.py"), "--config-file", f"{CONFIG}.yaml", *flags),
                *("DATASETS.STORES", f"mini_train={data['train']},mini_test={data['validation']}"),
                *("DATASETS.TRAIN", "mini_train", "DATASETS.TEST", "mini_test", "MODEL.DEVICE", "cpu"),
                *("SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD)),
                *("SOLVER.IMS_PER_BATCH", str(BATCH_SIZE), "DATALOADER.NUM_WORKERS", str(workers)),
                *("OUTPUT_DIR", str(run)),
            ]
        return [
            *(
                sys.executable,
                str(SCRIPTS / "lazyconfig_train_net.py"),
                "--config-file",
                f"{CONFIG}.py",
                *flags,
            ),
            f"datasets.stores=['mini_train={data['train']}','mini_test={data['validation']}']",
            *("dataloader.train.dataset.names=mini_train", "dataloader.test.dataset.names=mini_test"),
            *(f"train.max_iter={ITERATIONS}", f"train.checkpointer.period={CHECKPOINT_PERIOD}"),
            *(f"dataloader.train.total_batch_size={BATCH_SIZE}", f"dataloader.train.num_workers={workers}"),
            *("train.device=cpu", f"train.output_dir={run}", "train.log_period=1"),
        ]


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="scratch folder, made again")
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args(arguments)
    root = args.output.resolve()
    make_data(root)
    forms = [Form("yaml", root), Form("lazy", root)][: max(1, args.kills)]
    whole = {form.name: uninterrupted(form, root / f"whole-{form.name}") for form in forms}
    moments = random.Random(args.seed)
    equal = 0
    for number in range(args.kills):
        form = forms[number % len(forms)]
        run = root / f"killed-{number:02}"
        print(f"{number + 1:2}. {form.name}: ", end="", flush=True)
        delay, state = kill_and_resume(form, run, moments.uniform(0, whole[form.name]), (number % 4) // 2)
        differences = compare(root / f"whole-{form.name}", run)
        equal += not differences
        print(f"killed after {delay:.2f} s ({state}): {'; '.join(differences) or 'equal'}", flush=True)
        if not differences:
            shutil.rmtree(run)
    print(f"{equal} of {args.kills} equal to the uninterrupted run")
    return 0 if equal == args.kills else 1


def make_data(root: Path) -> None:
    """Generate a few images and their annotation stores below `root`."""
    for old in [*root.glob("killed-*"), *root.glob("whole-*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    sizes = "--train-images 16 --validation-images 4 --num-leaves 12 --imbalance 4 --min-objects 2"
    flags = "--co-label-rate 0 --formats openimages --stores --force --quiet"
    run_command(["shapes", "--output", str(root / "shapes"), *sizes.split(), *flags.split()])


def uninterrupted(form: Form, run: Path) -> float:
    """Trains to the end; returns the seconds from the first iteration to the last checkpoint."""
    process = start(form.command(run, workers=0, resume=False), run)
    wait_until_started(process, run)
    begin = time.perf_counter()
    while process.poll() is None and not (run / LAST).is_file():
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    finish(process, run)
    return seconds


def kill_and_resume(form: Form, run: Path, delay: float, workers: int) -> tuple[float, str]:
    """Kills a run `delay` seconds after its first iteration began, and resumes it to the end.

    A run that was quicker and had its last checkpoint by then does not count: another one is killed earlier.

    Returns:
        The delay at which training really was interrupted, and what the killed run had left.
    """
    while not kill(form.command(run, workers, resume=False), run, delay):
        shutil.rmtree(run)
        delay *= 0.7
    left = run / "last_checkpoint"
    partial = len(list(run.glob("*.partial-*")))
    state = left.read_text() if left.is_file() else "no checkpoint"
    finish(start(form.command(run, 1 - workers, resume=True), run), run)
    return delay, state + (f", {partial} unfinished file" if partial else "")


def kill(command: list[str], run: Path, delay: float) -> bool:
    """Starts a run and kills it; False if its last checkpoint was there already."""
    process = start(command, run)
    wait_until_started(process, run)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    elif process.returncode:
        finish(process, run)
    return not (run / LAST).is_file()


def start(command: list[str], run: Path) -> subprocess.Popen[bytes]:
    """A process with a group of its own, so that its workers can be killed with it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(f"{run}.txt", "ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_until_started(process: subprocess.Popen[bytes], run: Path) -> None:
    """Returns when the log says that training has begun, or the process has ended."""
    log = run / "log.txt"
    while process.poll() is None and not (log.is_file() and STARTED in log.read_text(errors="replace")):
        time.sleep(0.01)


def finish(process: subprocess.Popen[bytes], run: Path) -> None:
    """Waits for a run's end; stops the check if it failed."""
    if process.wait():
        sys.exit(f"a training run failed with exit code {process.returncode}; its output is in {run}.txt")


def compare(whole: Path, resumed: Path) -> list[str]:
    """What differs between two finished runs, in words."""
    one, two = (torch.load(run / LAST, weights_only=True) for run in (whole, resumed))
    result = [
        f"weights {name}"
        for name, value in one["model"].items()
        if not torch.equal(value, two["model"][name])
    ]
    states = [checkpoint["trainer"]["optimizer"]["state"] for checkpoint in (one, two)]
    for key, value in states[0].items():
        result += [
            f"optimizer {key}.{name}" for name in value if not torch.equal(value[name], states[1][key][name])
        ]
    schedules = [checkpoint["trainer"]["hooks"]["LRScheduler"] for checkpoint in (one, two)]
    result += ["schedule"] if schedules[0] != schedules[1] else []
    histories = [losses(checkpoint) for checkpoint in (one, two)]
    result += [f"losses {name}" for name in histories[0] if histories[0][name] != histories[1].get(name)]
    logs = [metrics(run) for run in (whole, resumed)]
    return result + (["metrics.json"] if logs[0] != logs[1] else [])


def losses(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """[[value, iteration], ...] of all iterations by the loss's name."""
    values = checkpoint["trainer"]["hooks"]["MetricsLog"]["values"]
    return {name: pairs for name, pairs in values.items() if "loss" in name or name == "lr"}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.json without what clocks measured."""
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds", "rank_data_time")
    result = [{key: value for key, value in line.items() if key not in clocks} for line in lines]
    repeated = [key for key, count in Counter(line["iteration"] for line in lines).items() if count > 1]
    if repeated:
        raise AssertionError(f"{run}/metrics.json repeats iterations {repeated}")
    return result


if __name__ == "__main__":
    sys.exit(main())
