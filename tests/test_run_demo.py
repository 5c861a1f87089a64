"""The demonstration as `make demo` runs it, shortened."""

import json
import os
import subprocess
import sys

import pytest


def run_demo(repository, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(repository / "scripts" / "run_demo.py"), *arguments]
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_quick_demo(repository, tmp_path):
    output = tmp_path / "demo"
    command = ["--quick", "--output", str(output), "--iterations", "22", "--images", "70"]
    done = run_demo(repository, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("head", "medium", "tail", "leaves", "all classes (official)", str(output / "report.html")):
        assert word in done.stdout
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "22 iterations" in html and html.count("<img") >= 10 and str(tmp_path) not in html
    state = json.loads((output / "demo.json").read_text())
    assert sorted(state["seconds"]) == ["evaluate", "generate", "prepare", "report", "train"]

    weights = output / "run" / "model_final.pth"
    before = weights.stat().st_mtime_ns
    again = run_demo(repository, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "finished before" in again.stdout and weights.stat().st_mtime_ns == before

    other = run_demo(repository, *command, "--seed", "5")
    assert other.returncode == 2
    assert "seed 0 -> 5" in other.stderr and "--force" in other.stderr and "Traceback" not in other.stderr
