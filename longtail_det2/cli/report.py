"""Write the report of a run: one HTML file with results, curves and images that opens from disk."""

import argparse
from pathlib import Path

EPILOG = """\
example:
  %(prog)s --run output/demo/run --output report.html \\
      --train-store output/demo/datasets/shapes/stores/train \\
      --val-store output/demo/datasets/shapes/stores/validation

Without the stores the report has no images and no data set sizes. Parts that the run does not have (it was
only evaluated, or not yet) are left out.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, its stores, and what is shown."""
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="OUTPUT_DIR of the run")
    add("--train-store", type=Path, metavar="DIR", help="annotation store that was trained on")
    add("--val-store", type=Path, metavar="DIR", help="annotation store of the evaluation, for the images")
    add("--dataset", metavar="NAME", help="which evaluation below inference/ (default: the only one)")
    add("--output", type=Path, required=True, metavar="HTML", help="file to write")
    add("--title", default="", help="heading")
    most = "most validation images (default: 12)"
    add("--number", dest="images", type=int, default=12, metavar="N", help=most)
    add("--score-threshold", type=float, metavar="T", help="draw predictions from this score on")
    add("--quiet", action="store_true", help="no notes of progress")


def run(args: argparse.Namespace) -> None:
    """Write the report."""
    from longtail_det2.visualization.report import build_report

    build_report(**{name: value for name, value in vars(args).items() if name != "quiet"})
