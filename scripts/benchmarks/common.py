"""What the benchmarks share: figures of a process, steps in fresh processes, rows beside targets."""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the data set and what :func:`child` passes on."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("openimages", "lvis"), help="whose size and form the data have")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def child(step: str, folder: Path) -> dict[str, Any]:
    """Run a step of this program in a fresh process; its last line of output is its result as JSON."""
    command = [sys.executable, "-W", "ignore", *sys.argv, "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_gb() -> float:
    """Peak resident memory of this process; not ru_maxrss, which keeps the parent's size at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def cpu_seconds() -> float:
    """CPU time of this process and its children, all threads."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def row(what: str, value: float, unit: str, target: float | None = None) -> bool:
    """Print a figure beside its target; whether it is met."""
    met = target is None or value <= target
    judged = "" if target is None else f"<= {target:g} {unit}"
    print(f"  {what:<44}{value:>10.3g} {unit:<5}{judged:>14}{'' if met else '  MISSED'}", flush=True)
    return met
