#!/usr/bin/env python3
"""Makes an annotation store from a COCO-form JSON file: own data, LVIS, several labels a box, a hierarchy.

Prints what is in the file and what is wrong with it before anything is written.
"""

import argparse
import sys
from pathlib import Path

from longtail_det2.data.datasets.coco import check_coco, prepare_coco
from longtail_det2.data.datasets.coco_report import CocoReport
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

Several labels: `"category_ids": [3, 17]` in an annotation, or annotations of one image with equal boxes.
A hierarchy names categories by name or id; those without parents need no entry. Here "animal" becomes a class
that all cats and dogs bear, whether it is a category or not:
  {"cat": ["animal"],
   "dog": ["animal"]}
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; see `prepare_coco` for the meaning of the options."""
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
    rules = parser.add_argument_group("rules (default: error)")
    add = rules.add_argument
    policy = ("error", "skip")
    add("--on-bad-box", choices=policy, default="error", help="boxes that are malformed or have no area")
    add("--on-bad-mask", choices=policy, default="error", help="masks that are malformed or empty")
    add("--on-missing-image", choices=policy, default="error", help="absent or unreadable images")
    add("--on-size-mismatch", choices=policy, default="error", help="files of another size than annotated")
    add("--on-unknown-category", choices=policy, default="error", help="labels of no listed category")
    add(
        "--unlisted",
        choices=("add", "contract", "error"),
        default="add",
        help="hierarchy labels that are no categories: make classes of those above a category (the default), "
        "leave all of them out, or refuse them",
    )
    add("--missing", choices=("error", "root"), default="error", help="categories that a tree does not have")
    add = parser.add_argument
    add(
        "--frequency",
        default="file",
        metavar="{file,images,none,STORE}",
        help="LVIS's groups of classes (rare, common, frequent): what the categories say (the default), by "
        "the number of images here, none, or those of another store, such as the training split's",
    )
    add(
        "--merge-iou", type=float, default=1.0, metavar="T", help="join boxes that overlap so much (1: equal)"
    )
    add("--no-masks", action="store_true", help="leave the masks out (default: kept where the file has any)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read image headers (2)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    options = {
        "merge_iou": args.merge_iou,
        "masks": not args.no_masks,
        "on_bad_box": args.on_bad_box,
        "on_bad_mask": args.on_bad_mask,
        "on_missing_image": args.on_missing_image,
        "on_size_mismatch": args.on_size_mismatch,
        "on_unknown_category": args.on_unknown_category,
        "unlisted": args.unlisted,
        "missing": args.missing,
        "frequency": args.frequency,
        "workers": args.workers,
    }
    try:
        if args.check:
            report = check_coco(args.json, args.images, args.hierarchy, **options)
            tell(report)
            report.findings.raise_errors()
        else:
            print(prepare_coco(args.json, args.images, args.output, args.hierarchy, report=tell, **options))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def tell(report: CocoReport) -> None:
    """Prints what was found."""
    print(report.text(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
