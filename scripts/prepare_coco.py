#!/usr/bin/env python3
"""Makes an annotation store from a COCO-form JSON file: own data, several labels a box, a hierarchy.

Example:
    python scripts/prepare_coco.py --json train.json --images images/train --hierarchy hierarchy.json \
        --output stores/my_train
    python scripts/train_net.py --config-file CONFIG DATASETS.STORES "('my_train=stores/my_train',)" \
        DATASETS.TRAIN "('my_train',)"
"""

import argparse
import sys
from pathlib import Path

from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.utils.errors import DataError


def parse_arguments() -> argparse.Namespace:
    """Command-line options; see `prepare_coco` for their meaning."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--json", type=Path, required=True, help="annotations in COCO form; `category_ids` for several labels"
    )
    add("--images", type=Path, help="folder that the file names are relative to")
    add("--hierarchy", type=Path, help="JSON: Open Images tree or {child: [parents]}, by category id or name")
    add("--output", type=Path, required=True, help="directory of the store; an older store is replaced")
    add(
        "--merge-iou",
        type=float,
        default=1.0,
        help="join boxes that overlap at least so much (1: equal boxes)",
    )
    add("--on-bad-box", choices=("error", "skip"), default="error", help="boxes without area in their image")
    add("--on-missing-image", choices=("error", "skip"), default="error", help="absent or unreadable images")
    add(
        "--unlisted", choices=("error", "contract"), default="error", help="hierarchy labels without category"
    )
    add(
        "--missing", choices=("error", "root"), default="error", help="categories that the tree does not have"
    )
    add("--workers", type=int, default=2, help="processes that read image headers")
    return parser.parse_args()


def main() -> int:
    """Runs the preparation; returns the exit status."""
    arguments = parse_arguments()
    try:
        store = prepare_coco(
            arguments.json,
            arguments.images,
            arguments.output,
            arguments.hierarchy,
            merge_iou=arguments.merge_iou,
            on_bad_box=arguments.on_bad_box,
            on_missing_image=arguments.on_missing_image,
            unlisted=arguments.unlisted,
            missing=arguments.missing,
            workers=arguments.workers,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(store)
    for key, value in store.header["summary"].items():
        print(f"  {key.replace('_', ' ')}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
