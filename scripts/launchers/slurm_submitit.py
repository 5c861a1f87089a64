#!/usr/bin/env python3
"""Train on a Slurm cluster: one job with a process per GPU, which resumes after preemption.

What follows `--` is the command line of the train script. When the job's time is up or Slurm announces
preemption, submitit puts it back into the queue, and the next run goes on from the newest checkpoint
(`--resume`). So does a job that Slurm itself puts back, after preemption or because a node failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
EPILOG = """\
examples (from a login node, in the environment that has longtail_det2):

  python scripts/launchers/slurm_submitit.py nodes=2 gpus_per_node=8 slurm_partition=gpu -- \\
      --config-file openimages/faster_rcnn_R_50_FPN_OpenImages_sigmoid.yaml OUTPUT_DIR /shared/runs/r50

  the same files, here instead of on Slurm, with two processes on the CPU:

  python scripts/launchers/slurm_submitit.py tasks_per_node=2 --cluster local --wait -- \\
      --config-file shapes/faster_rcnn_tiny_softmax_shapes.yaml SOLVER.MAX_ITER 20

Stores, images, OUTPUT_DIR and --folder must lie where all nodes see them.
"""
DEFAULTS = {"name": "longtail_det2", "cpus_per_task": 8, "timeout_min": 1440, "slurm_signal_delay_s": 120}
"""submitit's parameters where the command line says nothing; the job is requeued after `timeout_min`."""


@dataclass
class Training:
    """What submitit runs in each process; pickled, so it holds plain values only.

    Attributes:
        script: train script.
        arguments: its command line.
        resume: go on from the newest checkpoint, whether or not `arguments` say so.
    """

    script: str
    arguments: tuple[str, ...]
    resume: bool = False

    def command(self) -> list[str]:
        """The command line of the train script."""
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        resume = (self.resume or restarted) and "--resume" not in self.arguments
        # --resume comes before the options, which take all that follows.
        return [sys.executable, self.script, *(["--resume"] if resume else []), *self.arguments]

    def __call__(self) -> None:
        """Run the train script, which finds the other processes as inside torchrun.

        It is a process of its own, which is killed when submitit ends this one, and ignores the signal that
        announces preemption: some clusters send it to all processes of the job.

        Raises:
            RuntimeError: it failed, which makes the job a failed one.
        """
        from submitit.helpers import TorchDistributedEnvironment

        # Each process takes the GPU of its local rank.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        print(shlex.join(self.command()), flush=True)
        ignore_announcement = partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
        status = subprocess.call(self.command(), cwd=REPOSITORY, preexec_fn=ignore_announcement)
        if status and os.environ["RANK"] != "0":
            sys.exit(status)  # leaves no result behind, which the next run's would be mistaken for
        if status:
            raise RuntimeError(f"training ended with exit code {status}; its messages are in this job's logs")

    def checkpoint(self) -> Any:
        """Called by submitit before it puts the job back into the queue: the same, but resuming."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, resume=True))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; `resources` is submitit's parameters by name, and what follows `--` is in `train`."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=form)
    add = parser.add_argument
    add(
        "resources",
        nargs="*",
        metavar="KEY=VALUE",
        help="submitit's parameters: nodes=2 slurm_account=vision",
    )
    add("--cluster", choices=("slurm", "local"), default="slurm", help="local: run here (default: slurm)")
    add("--folder", type=Path, default="output/slurm", metavar="DIR", help="logs (default: %(default)s)")
    add("--script", default="scripts/train_net.py", metavar="FILE", help="default: %(default)s")
    add("--wait", action="store_true", help="wait for the end of the job")
    words = sys.argv[1:] if arguments is None else list(arguments)
    place = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:place])
    args.train = words[place + 1 :]
    if wrong := [entry for entry in args.resources if "=" not in entry]:
        parser.error(f"{wrong[0]!r} is not of the form key=value")
    given = dict(entry.split("=", 1) for entry in args.resources)
    args.resources = {key: int(value) if value.isdecimal() else value for key, value in given.items()}
    if not args.train:
        parser.error("the train script's own arguments are missing; they follow --: -- --config-file FILE")
    if not (REPOSITORY / args.script).is_file():
        parser.error(f"--script: {REPOSITORY / args.script} is no file")
    if not {"gpus_per_node", "tasks_per_node"} & set(given):
        parser.error("give gpus_per_node=N, or tasks_per_node=N for training on CPUs")
    return args


def make_executor(args: argparse.Namespace) -> Any:
    """The submitit executor with the resources that the command line asks for."""
    import submitit

    given = {**DEFAULTS, "tasks_per_node": args.resources.get("gpus_per_node"), **args.resources}
    executor = submitit.AutoExecutor(
        args.folder / "%j",  # the job's id
        cluster=args.cluster,
        slurm_max_num_timeout=given.pop("slurm_max_num_timeout", 20),
    )
    executor.update_parameters(
        slurm_srun_args=["--kill-on-bad-exit=1"],  # the others would wait for the one that failed
        slurm_additional_parameters={"requeue": True},
        **given,
    )
    return executor


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; with --wait 1 if the job failed; 2 if it cannot be submitted."""
    args = parse_arguments(arguments)
    try:
        executor = make_executor(args)
    except ModuleNotFoundError:
        print("error: submitit is not installed: pip install submitit", file=sys.stderr)
        return 2
    except (
        RuntimeError,
        ValueError,
        NameError,
    ) as error:  # no sbatch here, a local cluster of two nodes, a typo
        print(f"error: {error}", file=sys.stderr)
        return 2
    job = executor.submit(Training(str(REPOSITORY / args.script), tuple(args.train)))
    print(f"job {job.job_id}\nlogs {job.paths.stdout}\n     {job.paths.stderr}")
    error = job.exception() if args.wait else None
    if error is not None:
        print(f"error: job {job.job_id} failed: {error}", file=sys.stderr)
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main())
