"""Make an annotation store from a CSV of labels of whole images, for classifiers of images.

What is in the file and what is wrong with it is printed before anything is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell

EPILOG = """\
example:
  %(prog)s --csv train.csv --images images/train --classes classes.txt --output stores/my_train
  %(prog)s --csv val.csv --images images/val --classes stores/my_train --output stores/my_val

The file, with a header:
  image,labels
  0001.jpg,dog|person
  0002.jpg,

Classes that an image does not list are absent from it. With a column "absent", which lists classes that
somebody verified absent, all others are unverified: they neither train nor count.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files, the rules, and where the store goes."""
    add_source_arguments(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="the store; an older store is replaced")
    add("--quiet", action="store_true", help="print the store alone, not what is in the file")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and the rules for reading them."""
    add = parser.add_argument
    add("--csv", dest="csv_file", type=Path, required=True, metavar="FILE", help="columns image and labels")
    images = "folder that the names are relative to"
    add("--images", dest="image_root", type=Path, required=True, metavar="DIR", help=images)
    classes = (
        "the class order: a CSV with a column name (or id), a text file with one class a line, or a store "
        "(default: the labels of the file in alphabetical order)"
    )
    add("--classes", type=Path, metavar="PATH", help=classes)
    add("--hierarchy", type=Path, metavar="FILE", help="{child: [parents]}, or an Open Images tree (JSON)")
    add("--separator", default="|", metavar="TEXT", help="between two labels (default: |)")
    bad = "leave bad rows, labels and images out (default: an error)"
    add("--skip-bad", action="store_true", help=bad)
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (default: 2)")


def run(args: argparse.Namespace) -> None:
    """Make the store."""
    from longtail_det2.data.datasets.image_labels import prepare_image_labels

    options = {name: value for name, value in vars(args).items() if name != "quiet"}
    report = None if args.quiet else lambda found: tell(found.text())
    tell(str(prepare_image_labels(**options, report=report)))
