#!/usr/bin/env python3
"""Write the report of a run: one HTML file with results, curves and images that opens from disk."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)

from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.visualization.report import build_report  # noqa: E402

EPILOG = """\
example:
  python scripts/make_report.py --run output/demo/run --output report.html \\
      --train-store output/demo/datasets/shapes/stores/train \\
      --val-store output/demo/datasets/shapes/stores/validation

Without the stores the report has no images and no data set sizes. Parts that the run does not have (it was
only evaluated, or not yet) are left out.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="OUTPUT_DIR of the run")
    add("--train-store", type=Path, metavar="DIR", help="annotation store that was trained on")
    add("--val-store", type=Path, metavar="DIR", help="annotation store of the evaluation, for the images")
    add("--dataset", metavar="NAME", help="which evaluation below inference/ (default: the only one)")
    add("--output", type=Path, required=True, metavar="HTML", help="file to write")
    add("--title", default="", help="heading")
    add("--number", type=int, default=12, metavar="N", help="most validation images (default: 12)")
    add("--score-threshold", type=float, metavar="T", help="draw predictions from this score on")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        build_report(
            args.run,
            args.output,
            train_store=args.train_store,
            val_store=args.val_store,
            dataset=args.dataset,
            title=args.title,
            images=args.number,
            score_threshold=args.score_threshold,
        )
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
