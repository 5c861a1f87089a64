"""scripts/plot_negative_logits.py on an evaluated run, and on a folder that is none."""

import subprocess
import sys

from factories import image_label_store
from model_factories import classifier_run


def test_picture_and_error(tmp_path, repository):
    store = image_label_store(tmp_path)
    run = classifier_run(tmp_path / "run", store)
    script = [sys.executable, "scripts/plot_negative_logits.py", "--store", str(store.path)]

    def draw(folder):
        words = [*script, "--output", str(tmp_path / "logits.png"), f"some={folder}"]
        return subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)

    failed = draw(run)
    assert failed.returncode == 2 and "scores.npz" in failed.stderr
    assert not (tmp_path / "logits.png").exists()
    done = draw(run / "inference/tiny")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logits.png").read_bytes().startswith(b"\x89PNG")
