"""Start one process or many: inside torchrun, or by Detectron2's own flags; on GPUs or on CPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm
from torch import multiprocessing as mp

from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.wording import pluralize

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(
    main: Callable[..., Any],
    processes_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
    timeout: timedelta = TIMEOUT,
) -> Any:
    """Run ``main(*args)`` in every process of the job.

    Inside torchrun (its environment variables are set) this process is one of the job already and the numbers
    given here are not used. Else processes are spawned on this machine as Detectron2's launcher does, and the
    job also works without GPUs, by gloo instead of NCCL.

    Args:
        main: a function that can be pickled.
        processes_per_machine: one per GPU, or any number on CPUs.
        num_machines: of the job; the command is started on each.
        machine_rank: of this machine, in [0, num_machines).
        dist_url: where the processes find each other, "tcp://host:port"; "auto" takes a free port of this
            machine, for jobs on one machine.
        args: of `main`.
        timeout: of collective operations.

    Returns:
        What `main` returns if it ran in this process, else None.

    Raises:
        ConfigError: numbers that do not fit each other or the machine.
    """
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return _run_in_group(
            local_rank, local_size, main, args, {"init_method": "env://", "timeout": timeout}
        )
    world_size = processes_per_machine * num_machines
    _check(processes_per_machine, num_machines, machine_rank, dist_url)
    if world_size == 1:
        return main(*args)
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    group = {"init_method": dist_url, "world_size": world_size, "timeout": timeout, "rank": machine_rank}
    mp.start_processes(
        _run_in_group,
        nprocs=processes_per_machine,
        args=(processes_per_machine, main, tuple(args), group),
        start_method="spawn",
    )
    return None


def _check(processes: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    if processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--num-gpus {processes} --num-machines {num_machines} --machine-rank {machine_rank}: needs at "
            "least one process and one machine, and a rank below the number of machines"
        )
    if num_machines > 1 and dist_url == "auto":
        raise ConfigError("--dist-url: several machines need an address, tcp://<first machine>:<port>")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        devices = pluralize(torch.cuda.device_count(), "CUDA device")
        raise ConfigError(f"--num-gpus {processes}: this machine has {devices}")


def _run_in_group(
    local_rank: int, local_size: int, main: Callable[..., Any], args: Sequence[Any], group: dict[str, Any]
) -> Any:
    """Join the process group that `group` describes, create this machine's own, run `main`, and leave.

    Where `group` has a "rank", it is that of the machine. After an exception the process ends without leaving
    in order: that could wait for ranks which wait for this one, and would make them fail with errors about a
    closed connection before the launcher, which stops them, has seen whose error was the first.
    """
    if "rank" in group:
        group = {**group, "rank": group["rank"] * local_size + local_rank}
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **group)
    try:
        _make_local_group(local_size)
        comm.synchronize()
        result = main(*args)
    finally:
        # A group's threads end with the last reference to it, and Detectron2 keeps some. A gloo thread that
        # is still at work when the interpreter ends can abort it.
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()
    return result


def _make_local_group(local_size: int) -> None:
    """Tell Detectron2 which ranks share this machine; every rank has to make every machine's group."""
    rank = dist.get_rank()
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= rank < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group
