#!/usr/bin/env python3
"""Makes an annotation store from a COCO or LVIS JSON file: several labels per object, a hierarchy.

Prints what is in the file and what is wrong with it before anything is written.
"""

import argparse
import sys
from pathlib import Path

from longtail_det2.data.datasets.coco import CocoReport, check_coco, prepare_coco
from longtail_det2.utils.console import tell, tell_error
from longtail_det2.utils.errors import DataError

EPILOG = """\
examples:
  python scripts/prepare_coco.py --json train.json --images images/train --check
  python scripts/prepare_coco.py --json train.json --images images/train --output stores/my_train
  python scripts/prepare_coco.py --json train.json --images images/train --hierarchy hierarchy.json \\
      --output stores/my_train
  python scripts/train_net.py --config-file own_data/faster_rcnn_small_photos.yaml \\
      DATASETS.STORES "my_train=stores/my_train,my_val=stores/my_val" \\
      DATASETS.TRAIN my_train DATASETS.TEST my_val

Several labels of an object: `"category_ids": [3, 17]` in its annotation.
A hierarchy names categories by name or id; those without parents need no entry. Here "animal" becomes a class
of all cats and dogs, whether it is a category or not:
  {"cat": ["animal"],
   "dog": ["animal"]}
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; see `CocoOptions` for the meaning of the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="annotations in COCO form")
    add("--images", type=Path, metavar="DIR", help="folder that the file names are relative to")
    add("--hierarchy", type=Path, metavar="FILE", help="{child: [parents]}, or an Open Images tree (JSON)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, metavar="DIR", help="the store; an older store is replaced")
    where.add_argument("--check", action="store_true", help="say what is wrong, and make no store")
    add(
        "--skip-bad",
        action="store_true",
        help="leave bad entries out: boxes, masks, images, unknown ids, hierarchy labels (default: an error)",
    )
    add(
        "--merge-equal-boxes",
        action="store_true",
        help="annotations of one image with equal boxes are labels of one object (default: several objects)",
    )
    add("--no-masks", action="store_true", help="leave the masks out (default: kept where the file has any)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (2)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    options = {
        "skip_bad": args.skip_bad,
        "merge_equal_boxes": args.merge_equal_boxes,
        "masks": not args.no_masks,
        "workers": args.workers,
    }
    try:
        if args.check:
            report = check_coco(args.json, args.images, args.hierarchy, **options)
            _tell_report(report)
            report.issues.raise_errors()
        else:
            files = args.json, args.images, args.output, args.hierarchy
            tell(str(prepare_coco(*files, report=_tell_report, **options)))
    except DataError as error:
        return tell_error(error)
    return 0


def _tell_report(report: CocoReport) -> None:
    tell(report.text())


if __name__ == "__main__":
    sys.exit(main())
