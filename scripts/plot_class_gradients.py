#!/usr/bin/env python3
"""Draws how much training raised and lowered the logit of each class, one run or several in one picture.

The runs must have been trained with MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS True (in a lazy config
train.log_class_gradients=True).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)

from longtail_det2.utils.errors import DataError  # noqa: E402
from longtail_det2.visualization.gradient_plot import draw_gradients, read_gradients  # noqa: E402

EPILOG = """\
example:
  python scripts/plot_class_gradients.py output/softmax output/seesaw --labels softmax Seesaw \\
      --output gradients.png
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a training")
    parser.add_argument("--labels", nargs="+", default=[], metavar="TEXT", help="what to call them")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture, .png or .svg")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.labels and len(args.labels) != len(args.runs):
        parser.error(f"{len(args.runs)} runs, but {len(args.labels)} labels")
    if args.output.suffix not in (".png", ".svg"):
        parser.error(f"--output {args.output}: the name must end in .png or .svg")
    labels = args.labels or [""] * len(args.runs)
    try:
        runs = [read_gradients(run, label) for run, label in zip(args.runs, labels, strict=True)]
        draw_gradients(args.output, runs)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
