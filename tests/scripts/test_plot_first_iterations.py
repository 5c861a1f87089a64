"""scripts/plot_first_iterations.py with two iterations of each training."""

import subprocess
import sys

import pandas as pd
import pytest

SHAPES = (
    "--train-images 48 --validation-images 2 --image-size 64 --num-leaves 4 --min-objects 1 --co-label-rate 0"
)


@pytest.mark.slow
def test_curves_begin_at_their_first_scores(tmp_path, repository):
    generate = ["-m", "longtail_det2.cli", "shapes", "--output", tmp_path / "shapes", "--stores", "--quiet"]
    options = ["DATASETS.ROOT", tmp_path, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SEED", 1]
    draw = ["scripts/plot_first_iterations.py", tmp_path / "out", *options]
    for words in ([*generate, "--formats", "openimages", *SHAPES.split()], draw):
        subprocess.run([sys.executable, *map(str, words)], cwd=repository, check=True)
    losses = pd.read_csv(tmp_path / "out/first_iterations.csv", header=[0, 1], index_col=0)
    assert losses.shape == (2, 16)
    first = losses.iloc[0].unstack()
    assert first.nunique().eq(1).all()  # the optimizer and the scale change nothing yet
    assert list(first.mean().sort_values(ascending=False).index[:2]) == ["0.5", "0.01"]
    assert (tmp_path / "out/first_iterations.png").stat().st_size > 10_000
