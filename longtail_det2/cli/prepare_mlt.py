"""Make an annotation store of image labels from COCO or VOC annotations: COCO-MLT, VOC-MLT, or another tail.

What is in the files and what is wrong with them is printed before anything is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import ConfigError

EPILOG = """\
The published lists of images, and the test data, all images of a file or a set:

  %(prog)s --annotations instances_train2017.json --images train2017 --list img_id.txt \\
      --output datasets/coco_mlt/stores/train
  %(prog)s --annotations instances_val2017.json --images val2017 --output datasets/coco_mlt/stores/test
  %(prog)s --annotations VOCdevkit/VOC2012 --list img_id.txt --output datasets/voc_mlt/stores/train
  %(prog)s --annotations VOCdevkit/VOC2007 --image-set test --output datasets/voc_mlt/stores/test

Another long tail, of 500 images of the most frequent class:

  %(prog)s --annotations VOCdevkit/VOC2012 --draw --max 500 --seed 1 --output stores/long_tail
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files, the images to take, and where the store goes."""
    add = parser.add_argument
    annotations = "COCO's instances_*.json, or a folder such as VOCdevkit/VOC2012"
    add("--annotations", type=Path, required=True, metavar="PATH", help=annotations)
    images = "folder of the images (VOC: JPEGImages; COCO without it: for statistics alone)"
    add("--images", dest="image_root", type=Path, metavar="DIR", help=images)
    add("--image-set", default="trainval", metavar="NAME", help="VOC: the file of ImageSets/Main (trainval)")
    some = parser.add_mutually_exclusive_group()
    listed = (
        "the images to take, a text file with one id a line or a CSV with a column image_id (default: all)"
    )
    some.add_argument("--list", dest="image_list", type=Path, metavar="FILE", help=listed)
    some.add_argument("--draw", action="store_true", help="draw a long tail, by the published procedure")
    add("--max", type=int, metavar="N", help="--draw: images of the head class (COCO 1200, VOC 800)")
    add("--min", type=int, metavar="N", help="--draw: images that the curve ends at (1)")
    add("--seed", type=int, metavar="N", help="--draw: which images (0)")
    add("--skip-bad", action="store_true", help="leave bad entries and images out (default: an error)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (default: 2)")
    add("--output", type=Path, required=True, metavar="DIR", help="the store; an older store is replaced")
    add("--quiet", action="store_true", help="print the store alone, not what is in the files")


def run(args: argparse.Namespace) -> None:
    """Make the store."""
    from longtail_det2.data.datasets.mlt import LongTail, prepare_mlt

    given = {"most": args.max, "least": args.min, "seed": args.seed}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not args.draw:
        raise ConfigError("--max, --min and --seed say what --draw draws; give it, too")
    most = 800 if args.annotations.is_dir() else 1200
    options = {
        key: value for key, value in vars(args).items() if key not in ("quiet", "draw", "max", "min", "seed")
    }
    draw = LongTail(**{"most": most, **given}) if args.draw else None
    report = None if args.quiet else lambda found: tell(found.text())
    tell(str(prepare_mlt(**options, draw=draw, report=report)))
