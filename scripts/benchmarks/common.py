"""What the benchmarks share: figures of a process, children that report as JSON, rows beside targets."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def peak_gb() -> float:
    """Peak resident memory of this process; not ru_maxrss, which keeps the parent's size at the fork."""
    return proc_mb("status", "VmHWM:") / 1e3


def proc_mb(file: str, name: str) -> float:
    """A figure of this process in megabytes, from /proc/self."""
    lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def cpu_seconds() -> float:
    """CPU time of this process and its children, all threads."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def child(file: str, *arguments: object) -> dict[str, Any]:
    """Run a file in a fresh process; its last line of output is its report."""
    command = [sys.executable, "-W", "ignore", file, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(what: str, value: float, unit: str, target: float | None = None) -> bool:
    """Print a figure beside its target; whether it is met."""
    met = target is None or value <= target
    judged = "" if target is None else f"<= {target:g} {unit}"
    print(f"  {what:<44}{value:>10.3g} {unit:<5}{judged:>14}{'' if met else '  MISSED'}", flush=True)
    return met
