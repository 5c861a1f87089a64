"""Two processes as torchrun starts them, which can be killed."""

import os
import signal
import socket
import subprocess
import sys

SECONDS = 240
"""Nothing takes as long; a hang would take the half hour of a collective operation's timeout."""


def start_ranks(command, log):
    """Two processes in the environment that torchrun makes, each with its workers in a group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    size = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with open(log, "ab") as output:
        return [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **quiet, **address, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,
            )
            for rank in range(2)
        ]


def finish(processes, log):
    """Waits for the end of both; a failure shows their output."""
    try:
        assert [process.wait(SECONDS) for process in processes] == [0, 0], log.read_text()
    finally:
        kill(processes)


def kill(processes):
    """SIGKILL to all that still run, with their workers."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
