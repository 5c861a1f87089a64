"""Make an annotation store from Open Images files; it trains, evaluates and opens in milliseconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail_det2.utils.console import tell

if TYPE_CHECKING:
    from longtail_det2.data.store import AnnotationStore

EPILOG = """\
Own data in Open Images form:

  %(prog)s --boxes train-annotations-bbox.csv --classes class-descriptions.csv \\
      --hierarchy hierarchy.json --images images/ --output datasets/my_train

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files, the rules, and where the store goes."""
    add_source_arguments(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="the store to make")
    add("--force", action="store_true", help="build even if the store is up to date")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and the rules for reading them."""
    add = parser.add_argument
    add("--boxes", type=Path, nargs="+", required=True, metavar="CSV", help="boxes, columns by name")
    add("--image-labels", type=Path, nargs="+", default=[], metavar="CSV", help="human-verified image labels")
    add("--classes", type=Path, required=True, metavar="CSV", help="descriptions: LabelName,DisplayName")
    add("--hierarchy", type=Path, metavar="JSON", help="class hierarchy; none: the classes are unrelated")
    images = (
        "folder with the images, at any depth (ImageID.jpg, .png, ...). Without it the sizes of the images "
        "are unknown: enough for statistics and evaluation, not for training"
    )
    add("--images", type=Path, metavar="DIR", help=images)
    unknown = "rows whose label is not among the classes (default: error)"
    add("--on-unknown-label", choices=("error", "skip"), default="error", help=unknown)
    bad = (
        "leave out, instead of refusing: boxes outside [0, 1] by more than 1e-6, inverted or not finite, "
        "machine labels, and images that are not in the folder or cannot be read"
    )
    add("--skip-bad", action="store_true", help=bad)
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (default: 2)")
    add("--quiet", action="store_true", help="no progress bars and notes")


def run(args: argparse.Namespace) -> None:
    """Make the store, or open the one that is up to date."""
    from longtail_det2.data.datasets.openimages import prepare_openimages

    options = {name: value for name, value in vars(args).items() if name != "quiet"}
    tell(summary(prepare_openimages(**options, progress=not args.quiet)))


def summary(store: AnnotationStore) -> str:
    """Return what the store has, and what was left out of it."""
    lines = [str(store)]
    for name, value in store.header["summary"].items():
        if value or name in ("images", "objects", "labels", "image_labels"):
            lines.append(f"  {name.replace('_', ' '):32} {value:>12,}")
    return "\n".join(lines)
