"""Training killed at random moments; LONGTAIL_DET2_KILLS sets how often (20 for the whole check)."""

import os
import subprocess
import sys

import pytest

KILLS = int(os.environ.get("LONGTAIL_DET2_KILLS", "3"))


@pytest.mark.slow
def test_killed_and_resumed_training_equals_uninterrupted_training(repository, tmp_path):
    script = [sys.executable, str(repository / "scripts/check_resume.py")]
    done = subprocess.run(
        [*script, "--output", str(tmp_path), "--kills", str(KILLS), "--seed", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{KILLS} of {KILLS} equal to the uninterrupted run"
