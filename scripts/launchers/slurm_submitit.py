#!/usr/bin/env python3
"""Trains on a Slurm cluster: submits one job in which every node runs torchrun; resumes after preemption.

What follows `--` is the command line of the train script. Each node runs one submitit task, and the task runs
torchrun with one process a GPU. When the job's time is up or Slurm announces preemption, submitit puts it
back into the queue, and the next run goes on from the newest checkpoint (`--resume`). So does a job that
Slurm itself puts back, after preemption or because a node failed.
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
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STOP_SECONDS = 30
"""Seconds that torchrun has to stop its processes before it is killed."""

EPILOG = """\
examples (from a login node, in the environment that has longtail_det2):

  python scripts/launchers/slurm_submitit.py --nodes 2 --gpus-per-node 8 --cpus-per-task 64 \\
      --partition gpu --time 2880 --slurm account=vision -- \\
      --config-file openimages/faster_rcnn_R_50_FPN_OpenImages_sigmoid.yaml OUTPUT_DIR /shared/runs/r50

  the same files, here instead of on Slurm, with two processes on the CPU:

  python scripts/launchers/slurm_submitit.py --cluster local --processes-per-node 2 --wait -- \\
      --config-file shapes/faster_rcnn_tiny_softmax_shapes.yaml SOLVER.MAX_ITER 20

Stores, images, OUTPUT_DIR and --folder must lie where all nodes see them.
"""


@dataclass
class Torchrun:
    """What submitit runs on each node; pickled, so it holds plain values only.

    Attributes:
        script: train script.
        arguments: its command line.
        processes: processes a node; 0 for as many as there are GPUs.
        port: where the processes of all nodes meet, on the first node; 0 (one node only) for a free one.
        resume: go on from the newest checkpoint, whether or not `arguments` say so.
    """

    script: str
    arguments: tuple[str, ...]
    processes: int
    port: int
    resume: bool = False

    def command(self, num_nodes: int, node: int, master: str) -> list[str]:
        """The torchrun command line of one node.

        Args:
            num_nodes: nodes of the job.
            node: this one's number, from 0.
            master: host name of node 0.
        """
        # The module and not the command torchrun: the interpreter is then surely this one.
        result = [sys.executable, "-m", "torch.distributed.run"]
        if num_nodes == 1 and not self.port:
            result += ["--standalone"]
        else:
            result += [f"--nnodes={num_nodes}", f"--node-rank={node}"]
            result += [f"--master-addr={master}", f"--master-port={self.port}"]
        result += [f"--nproc-per-node={self.processes or 'gpu'}", self.script]
        if self.resume and "--resume" not in self.arguments:
            result += ["--resume"]  # before the options, which take all that follows
        return [*result, *self.arguments]

    def __call__(self) -> int:
        """Runs torchrun on this node until it ends.

        Raises:
            RuntimeError: torchrun failed, which makes the job a failed one.
        """
        import submitit

        environment = submitit.JobEnvironment()
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        task = replace(self, resume=self.resume or restarted)
        master = environment.hostnames[0]
        command = task.command(environment.num_nodes, environment.node, master)
        print(shlex.join(command), flush=True)
        status = run_until_stopped(command)
        if status:
            raise RuntimeError(f"torchrun ended with exit code {status}; its messages are in this job's logs")
        return status

    def checkpoint(self) -> Any:
        """Called by submitit before it puts the job back into the queue: the same, but resuming."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, resume=True))


def run_until_stopped(command: Sequence[str]) -> int:
    """Runs a command; stops it, with all that it started, if this process is told to end.

    submitit announces preemption by SIGUSR2, which some clusters send to all processes of the job. The
    command ignores it: submitit's own handler, in this process, decides.
    """

    def ignore_announcement() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    process = subprocess.Popen(command, cwd=REPOSITORY, preexec_fn=ignore_announcement)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line; what follows `--` is in `train`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cluster", choices=("slurm", "local"), default="slurm", help="local: run here (default: slurm)")
    add("--folder", type=Path, default=Path("output/slurm"), metavar="DIR", help="logs (%%j: the job's id)")
    add("--script", default="scripts/train_net.py", metavar="FILE", help="default: scripts/train_net.py")
    add("--name", default="longtail_det2", help="of the job")
    add("--nodes", type=int, default=1, metavar="N", help="default: 1")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs to ask for (default: 0)")
    add("--processes-per-node", type=int, default=0, metavar="N", help="default: one a GPU")
    add("--cpus-per-task", type=int, default=8, metavar="N", help="CPU cores a node (default: 8)")
    add("--mem-gb", type=float, metavar="GB", help="memory a node")
    add("--time", type=int, default=1440, metavar="MIN", help="minutes until it is requeued (default: 1440)")
    add("--partition", metavar="NAME", help="Slurm partition")
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="more sbatch options, account=NAME ...")
    add("--signal-delay", type=int, default=120, metavar="S", help="seconds of warning (default: 120)")
    add("--max-timeouts", type=int, default=20, metavar="N", help="most requeues for time (default: 20)")
    add("--port", type=int, default=29500, metavar="N", help="on the first of several nodes (default: 29500)")
    add("--wait", action="store_true", help="wait for the end of the job")
    own, train = split_arguments(sys.argv[1:] if arguments is None else list(arguments))
    args = parser.parse_args(own)
    args.train = train
    problem = find_problem(args)
    if problem:
        parser.error(problem)
    return args


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after the first `--`."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def find_problem(args: argparse.Namespace) -> str:
    """What is wrong with the command line; empty if nothing is."""
    if not args.train:
        return "the train script's own arguments are missing; they follow --, such as -- --config-file FILE"
    if not (REPOSITORY / args.script).is_file():
        return f"--script: {REPOSITORY / args.script} is no file"
    if min(args.nodes, args.cpus_per_task, args.time) < 1:
        return "--nodes, --cpus-per-task and --time must be at least 1"
    if args.cluster == "local" and args.nodes > 1:
        return "--cluster local has one node; leave --nodes out"
    if not (args.gpus_per_node or args.processes_per_node):
        return "give --gpus-per-node, or --processes-per-node for training on CPUs"
    wrong = [entry for entry in args.slurm if "=" not in entry]
    if wrong:
        return f"--slurm: {wrong[0]!r} is not of the form key=value"
    return ""


def make_executor(args: argparse.Namespace) -> Any:
    """The submitit executor with the resources that the command line asks for."""
    import submitit

    timeouts = {} if args.cluster == "local" else {"slurm_max_num_timeout": args.max_timeouts}
    executor = submitit.AutoExecutor(folder=args.folder / "%j", cluster=args.cluster, **timeouts)
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        tasks_per_node=1,
        gpus_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_task,
        timeout_min=args.time,
    )
    if args.cluster == "local":
        return executor
    if args.mem_gb:
        executor.update_parameters(mem_gb=args.mem_gb)
    if args.partition:
        executor.update_parameters(slurm_partition=args.partition)
    executor.update_parameters(
        slurm_signal_delay_s=args.signal_delay,
        slurm_additional_parameters={
            "requeue": True,
            **dict(entry.split("=", 1) for entry in args.slurm),
        },
    )
    return executor


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; with --wait 1 if the job failed; 2 if it cannot be submitted."""
    args = parse_arguments(arguments)
    try:
        executor = make_executor(args)
    except ModuleNotFoundError:
        print("error: submitit is not installed: pip install 'longtail-det2[slurm]'", file=sys.stderr)
        return 2
    except RuntimeError as error:  # no sbatch on this machine
        print(f"error: {error}", file=sys.stderr)
        return 2
    one_node = args.nodes == 1
    job = executor.submit(
        Torchrun(
            script=str(REPOSITORY / args.script),
            arguments=tuple(args.train),
            processes=args.processes_per_node or args.gpus_per_node,
            port=0 if one_node else args.port,
        )
    )
    print(f"job {job.job_id}\nlogs {job.paths.stdout}\n     {job.paths.stderr}")
    if not args.wait:
        return 0
    error = job.exception()
    if error is not None:
        print(f"error: job {job.job_id} failed: {error}", file=sys.stderr)
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main())
