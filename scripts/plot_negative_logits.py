#!/usr/bin/env python3
r"""Draw how far classifiers of images push down the logits of classes that are not in an image.

From the evaluations of runs, whose scores are those of a sigmoid. The paper of the Distribution-Balanced loss
argues that cross entropy goes on suppressing rare classes where they are right already. A panel for each of
head, medium and tail; medians of the negatives and of the positives are written into it.

Example:
    python scripts/plot_negative_logits.py --store datasets/shapes_coco/stores/validation --output out.png \
        ERM=output/erm/inference/shapes_coco_validation DB=output/db/inference/shapes_coco_validation
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import logit

from longtail_det2.cli import tell_error
from longtail_det2.data.statistics import FREQUENCY_BINS
from longtail_det2.data.store import AnnotationStore
from longtail_det2.evaluation.ground_truth import StoreGroundTruth
from longtail_det2.evaluation.image_label_metric import SCORES_FILE, image_truth, read_scores
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.io import read_json
from longtail_det2.visualization.plots import COLORS


def draw(runs: dict[str, Path], store: AnnotationStore, path: Path) -> None:
    """Draw a panel for each bin, in each a curve for each folder of an evaluation."""
    truth = image_truth(StoreGroundTruth(store))
    figure = Figure((10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for (name, folder), color in zip(runs.items(), COLORS, strict=False):
        found = read_scores(folder / SCORES_FILE, store)
        logits = logit(found.score.astype(np.float64).clip(1e-7, 1 - 1e-7))
        bins = [one["frequency_bin"] for one in read_json(folder / "results.json")["classes"]]
        for axes, group in zip(panels, FREQUENCY_BINS, strict=True):
            members = [place for place, own in enumerate(bins) if own == group]
            own, labels = logits[:, members], truth[found.image][:, members]
            negatives, positives = own[labels == 0], own[labels == 1]
            axes.hist(negatives, 120, range=(-14, 6), histtype="step", density=True, color=color, label=name)
            medians = f"{name}: {np.median(negatives):.1f}, {np.median(positives):.1f}"
            axes.annotate(medians, (0.98, 0.95 - 0.08 * list(runs).index(name)), xycoords="axes fraction",
                          ha="right", va="top", color=color, fontsize=8)  # fmt: skip
            axes.set_title(f"{group}: {len(members)} classes", loc="left")
            axes.grid(color="0.9")
    figure.supxlabel(
        "logit of classes that are not in the image; written: medians of negatives, of positives"
    )
    panels[0].set_ylabel("density")
    figure.savefig(path, dpi=150)


def main() -> int:
    """Command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=FOLDER", help="evaluations, inference/DATASET of runs"
    )
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="the truth")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="PNG or SVG")
    args = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (one.partition("=") for one in args.runs)}
    try:
        draw(runs, AnnotationStore(args.store), args.output)
    except (ConfigError, DataError, OSError) as error:
        return tell_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
