#!/usr/bin/env python3
"""Draws how much training raised and lowered the logit of each class, of several methods side by side.

The runs must have been trained with MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS True (in a lazy config
train.log_class_gradients=True).
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)

from tabulate import tabulate  # noqa: E402

from longtail_det2.data.datasets.coco import LVIS_THRESHOLDS  # noqa: E402
from longtail_det2.utils.errors import DataError  # noqa: E402
from longtail_det2.visualization.gradient_plot import (  # noqa: E402
    draw_gradients,
    ratios_of_groups,
    read_gradients,
)

EPILOG = """\
example:
  python scripts/plot_class_gradients.py --output gradients.png \\
      --runs softmax output/softmax_seed* --runs Seesaw output/seesaw_seed*
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs",
        action="append",
        nargs="+",
        required=True,
        metavar=("LABEL", "FOLDER"),
        help="a name, and the output folders of one or more trainings (seeds) that it stands for",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture, .png or .svg")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    for label, *folders in args.runs:
        if not folders:
            parser.error(f"--runs {label}: needs a name and at least one folder")
    if len({label for label, *_ in args.runs}) < len(args.runs):
        parser.error("--runs: a name is given twice")
    if args.output.suffix not in (".png", ".svg"):
        parser.error(f"--output {args.output}: the name must end in .png or .svg")
    try:
        methods = {
            label: [read_gradients(Path(folder)) for folder in folders] for label, *folders in args.runs
        }
        draw_gradients(args.output, methods)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [(label, len(runs), *map(_known, ratios_of_groups(runs))) for label, runs in methods.items()]
    rare, common = LVIS_THRESHOLDS
    groups = (f"rare (1-{rare} images)", f"common (-{common})", "frequent")
    print("Raising by lowering gradient, geometric mean over classes and runs:")
    print(tabulate(rows, headers=("", "runs", *groups), disable_numparse=True))
    print(f"Wrote {args.output}")
    return 0


def _known(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


if __name__ == "__main__":
    sys.exit(main())
