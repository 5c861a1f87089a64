"""Make an annotation store from a COCO or LVIS JSON file: several labels per object, masks, a hierarchy.

What is in the file and what is wrong with it is printed before anything is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell

EPILOG = """\
examples:
  %(prog)s --json train.json --images images/train --output stores/my_train
  %(prog)s --json train.json --images images/train --hierarchy hierarchy.json --output stores/my_train
  longtail-det2 train --config-file own_data/faster_rcnn_small_photos.yaml \\
      DATASETS.STORES "my_train=stores/my_train,my_val=stores/my_val" \\
      DATASETS.TRAIN my_train DATASETS.TEST my_val

Several labels of an object: `"category_ids": [3, 17]` in its annotation.
A hierarchy names categories by name or id; those without parents need no entry. Here "animal" becomes a class
of all cats and dogs, whether it is a category or not:
  {"cat": ["animal"],
   "dog": ["animal"]}
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
    add("--json", dest="json_file", type=Path, required=True, metavar="FILE", help="annotations in COCO form")
    images = "folder that the file names are relative to"
    add("--images", dest="image_root", type=Path, metavar="DIR", help=images)
    add("--hierarchy", type=Path, metavar="FILE", help="{child: [parents]}, or an Open Images tree (JSON)")
    bad = "leave bad entries out: boxes, masks, images, unknown ids, hierarchy labels (default: an error)"
    add("--skip-bad", action="store_true", help=bad)
    merge = "annotations of one image with equal boxes are labels of one object (default: several objects)"
    add("--merge-equal-boxes", action="store_true", help=merge)
    masks = "leave the masks out (default: kept where the file has any)"
    add("--no-masks", dest="masks", action="store_false", help=masks)
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (default: 2)")


def run(args: argparse.Namespace) -> None:
    """Make the store."""
    from longtail_det2.data.datasets.coco import prepare_coco

    report = None if args.quiet else lambda found: tell(found.text())
    options = {name: value for name, value in vars(args).items() if name != "quiet"}
    tell(str(prepare_coco(**options, report=report)))
