#!/usr/bin/env python3
"""Open Images annotation files to one annotation store that trains, evaluates and opens in milliseconds."""

import argparse
import logging
import sys
from pathlib import Path

from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.utils.console import tell, tell_error
from longtail_det2.utils.errors import DataError

EPILOG = """\
Own data in Open Images form:

  %(prog)s --boxes train-annotations-bbox.csv --classes class-descriptions.csv \\
      --hierarchy hierarchy.json --images images/ --output datasets/my_train

Challenge 2019 (500 classes), with the official file names:

  %(prog)s --boxes challenge-2019-train-detection-bbox.csv \\
      --image-labels challenge-2019-train-detection-human-imagelabels.csv \\
      --classes challenge-2019-classes-description-500.csv \\
      --hierarchy challenge-2019-label500-hierarchy.json \\
      --images images/train --output datasets/openimages/challenge_2019_train

V6 and V7 (600 classes), with the official file names:

  %(prog)s --boxes oidv6-train-annotations-bbox.csv \\
      --image-labels oidv6-train-annotations-human-imagelabels.csv \\
      --classes oidv7-class-descriptions-boxable.csv --hierarchy bbox_labels_600_hierarchy.json \\
      --on-unknown-label skip --images images/train --output datasets/openimages/v6_train

(--on-unknown-label skip: the image labels of V6 know some 20,000 concepts, most of which have no boxes.) The
validation and test splits go the same way, with validation-annotations-bbox.csv and so on.

Boxes of one image with equal coordinates become one object with several labels. A second call with the same
files and options returns at once. A killed run leaves nothing behind that could be taken for a store.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    files = parser.add_argument_group("files")
    add = files.add_argument
    add(
        "--boxes", type=Path, nargs="+", required=True, metavar="CSV", help="box annotations, columns by name"
    )
    add("--image-labels", type=Path, nargs="+", default=[], metavar="CSV", help="human-verified image labels")
    add(
        "--classes", type=Path, required=True, metavar="CSV", help="class descriptions: LabelName,DisplayName"
    )
    add("--hierarchy", type=Path, metavar="JSON", help="class hierarchy; none: the classes are unrelated")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder with the images, at any depth (ImageID.jpg, .png, ...). Without it the sizes of the "
        "images are unknown: enough for statistics and evaluation, not for training",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="the store to make")
    rules = parser.add_argument_group("rules")
    add = rules.add_argument
    add(
        "--on-unknown-label",
        choices=("error", "skip"),
        default="error",
        help="rows whose label is not among the classes (default: error)",
    )
    add(
        "--skip-bad",
        action="store_true",
        help="leave out, instead of refusing: boxes outside [0, 1] by more than 1e-6, inverted or not "
        "finite, machine labels, and images that are not in the folder or cannot be read",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--workers", type=int, default=2, help="processes that read image headers (default: 2)")
    run.add_argument("--force", action="store_true", help="build even if the store is up to date")
    run.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        store = prepare_openimages(**vars(args))
    except DataError as error:
        return tell_error(error)
    lines = [str(store)]
    for name, value in store.header["summary"].items():
        if value or name in ("images", "objects", "labels", "image_labels"):
            lines.append(f"  {name.replace('_', ' '):32} {value:>12,}")
    tell("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
