#!/usr/bin/env python3
"""Train RetinaNet without focal loss from different first scores, and draw its classification loss.

Each point is one iteration's loss, before scaling where it is guided; a training ends where a loss is no
longer finite. Below OUTPUT: first_iterations.png and .csv, and the runs.

Example, 16 short trainings on the data that `make demo` generates:
    python scripts/plot_first_iterations.py output/first_iterations DATASETS.ROOT output/demo/datasets SEED 1
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from longtail_det2.config_files import load_cfg
from longtail_det2.engine.setup import setup
from longtail_det2.engine.trainer import Trainer
from longtail_det2.modeling import events
from longtail_det2.visualization.plots import COLORS

CONFIG = "projects/SamplingFree/configs/shapes/retinanet_tiny_sampling_free_shapes.yaml"
SGD = [
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.0001"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
]
NOT_GUIDED = ["MODEL.DENSE_HEAD.GUIDED_SCALE", "0.0"]
KINDS = {
    "AdamW, gradient clipped": NOT_GUIDED,
    "AdamW, gradient clipped, guided": [],
    "SGD, not clipped": SGD + NOT_GUIDED,
    "SGD, not clipped, guided": SGD,
}
SCORES = {
    "0.5": ("fixed", "0.5"),
    "0.01": ("fixed", "0.01"),
    "measured": ("shared", "0.01"),
    "measured per class": ("per_class", "0.01"),
}


def record(folder: Path, options: list[str]) -> list[float]:
    """Train, and return the classification loss of each iteration."""
    trainer = Trainer(setup(load_cfg(CONFIG, options), str(folder)))
    try:
        trainer.train()
    except FloatingPointError as error:
        print(error)
    logged = trainer.step.storage.histories()
    return [value for value, _ in logged.get("guided/loss_cls", logged["loss_cls"]).values()]


def draw(losses: pd.DataFrame, path: Path) -> None:
    """Draw a panel per kind, a curve per first score; axes are logarithmic."""
    figure = Figure((9, 6.5), layout="constrained")
    panels = list(figure.subplots(2, 2, sharex=True, sharey=True).flat)
    for axes, kind in zip(panels, KINDS, strict=True):
        for score, color in zip(SCORES, COLORS, strict=False):
            curve = losses[kind, score]
            axes.plot(curve, color=color, linewidth=1.2)
            if axes is panels[0]:
                place = (0, -13 if "class" in score else 5)
                axes.annotate(score, (1, curve[1]), place, textcoords="offset points", color=color)
        axes.set(xscale="log", yscale="log")
        axes.set_title(kind, loc="left")
        axes.grid(color="0.9")
        axes.xaxis.set_major_formatter("{x:.0f}")
    figure.supxlabel("iteration")
    figure.supylabel("classification loss")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="of all trainings")
    args = parser.parse_args()
    events.LOG_PERIOD = 1  # the loss before scaling is logged in each iteration
    columns = {}
    for kind, own in KINDS.items():
        for score, (prior, fixed) in SCORES.items():
            head = ["MODEL.DENSE_HEAD.PRIOR", prior, "MODEL.RETINANET.PRIOR_PROB", fixed]
            options = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "200", *own, *head, *args.options]
            columns[kind, score] = pd.Series(record(args.output / kind / score, options))
    losses = pd.DataFrame(columns)
    losses.index = pd.RangeIndex(1, len(losses) + 1, name="iteration")
    losses.to_csv(args.output / "first_iterations.csv", float_format="%.4g")
    draw(losses, args.output / "first_iterations.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
