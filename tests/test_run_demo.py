"""The demonstration as `make demo` runs it, shortened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_demo(repository, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(repository / "scripts" / "run_demo.py"), *arguments]
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory):
    """(folder, command) of a demonstration that ran: the one that CI made in a step of its own, else ours."""
    made = os.environ.get("LONGTAIL_DET2_FINISHED_DEMO", "")
    folder = Path(made) if made else tmp_path_factory.mktemp("demo") / "demo"
    command = ["--quick", "--output", str(folder)]
    if not made:
        command += ["--iterations", "22", "--images", "70"]
        done = run_demo(repository, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder, command


@pytest.mark.slow
def test_quick_demo(finished, repository):
    folder, command = finished
    weights, report = folder / "run" / "model_final.pth", folder / "report.html"
    state = json.loads((folder / "demo.json").read_text())
    assert sorted(state["seconds"]) == ["evaluate", "generate", "train"]
    iterations = state["options"]["iterations"]
    results = json.loads((folder / "run/inference/shapes_validation/results.json").read_text())
    official = json.loads((folder / "official.json").read_text())["mAP"]
    assert results["summary"]["bbox"]["mAP50"] == pytest.approx(official, abs=1e-3)
    html = report.read_text(encoding="utf-8")
    assert f"{iterations} iterations" in html and html.count("<img") >= 10 and str(folder) not in html

    before = weights.stat().st_mtime_ns
    again = run_demo(repository, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    for word in ("mAP50_tail", "mAP50_leaves", str(report)):
        assert word in again.stdout
    assert "finished before" in again.stdout and weights.stat().st_mtime_ns == before

    other = run_demo(repository, *command, "--seed", "5")
    assert other.returncode == 2
    assert "seed 0 -> 5" in other.stderr and "--force" in other.stderr and "Traceback" not in other.stderr
