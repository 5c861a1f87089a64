"""Two processes as torchrun starts them, which can be killed; and what a run leaves."""

import json
import os
import signal
import socket
import subprocess
import sys

import torch

SECONDS = 240
"""Nothing takes as long; a hang would take the half hour of a collective operation's timeout."""


def run_script(*command, **more):
    """A finished Python process, its output as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    options = {"capture_output": True, "text": True, "timeout": SECONDS, "env": environment, **more}
    return subprocess.run([sys.executable, *map(str, command)], **options)


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
    """Waits for the end of all; a failure shows their output."""
    try:
        assert not any(process.wait(SECONDS) for process in processes), log.read_text()
    finally:
        kill(processes)


def kill(processes):
    """SIGKILL to all that still run, with their workers."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def differences(whole, resumed):
    """What differs, to the bit, between two finished runs."""
    one, two = (torch.load(run / "model_final.pth", weights_only=True) for run in (whole, resumed))
    found = [f"weights {name}" for name, value in one["model"].items() if not value.equal(two["model"][name])]
    states = [checkpoint["trainer"]["optimizer"]["state"] for checkpoint in (one, two)]
    for key, value in states[0].items():
        found += [f"optimizer {key}.{name}" for name in value if not value[name].equal(states[1][key][name])]
    hooks = [checkpoint["trainer"]["hooks"] for checkpoint in (one, two)]
    found += ["schedule"] if hooks[0]["LRScheduler"] != hooks[1]["LRScheduler"] else []
    for name, pairs in hooks[0]["MetricsLog"]["values"].items():
        if ("loss" in name or name == "lr") and pairs != hooks[1]["MetricsLog"]["values"].get(name):
            found.append(f"values {name}")
    lines = metrics(resumed)
    once = len({line["iteration"] for line in lines}) == len(lines)
    return found + ([] if once and metrics(whole) == lines else ["metrics.json"])


def metrics(folder):
    """Lines of metrics.json without what clocks measured."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds", "rank_data_time")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines]


def logged(folder, key="total_loss"):
    """The values of a metric by the iteration that logged it."""
    return {line["iteration"]: line[key] for line in metrics(folder) if key in line}


def weights(folder, name="model_final.pth"):
    """The model's part of a checkpoint."""
    return torch.load(folder / name, weights_only=True)["model"]
