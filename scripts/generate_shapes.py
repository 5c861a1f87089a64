#!/usr/bin/env python
"""Generate the shapes data set: long-tailed, multi-label and hierarchical by construction.

Example:
    python scripts/generate_shapes.py --output datasets/shapes --imbalance 300 --missing-leaf-rate 0.2
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path

from longtail_det2.shapes import FORMATS, ShapesOptions, generate_shapes

HELP = {
    "train_images": "training images",
    "validation_images": "validation images (class-balanced)",
    "image_size": "side of the square images in px",
    "num_leaves": "leaf classes, 2 to 60",
    "imbalance": "frequency of the most over that of the least frequent leaf in training",
    "min_objects": "correctly annotated training objects that every leaf has at least",
    "max_objects": "an image has 1 to this many objects",
    "missing_leaf_rate": "fraction of objects labelled with only one parent, shape or colour",
    "co_label_rate": "fraction of two-coloured objects: two parallel labels, two rows with one box",
    "confusion_rate": "fraction of objects labelled as a similar leaf",
    "group_of_rate": "fraction of boxes over a group of touching instances",
    "negatives_per_image": "classes verified absent per image",
    "seed": "seed; the same options and seed give the same bytes",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; defaults are those of ShapesOptions."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder to make")
    defaults = ShapesOptions()
    for name, text in HELP.items():
        default = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=text)
    parser.add_argument("--formats", default=",".join(FORMATS), help="annotations to write, by commas")
    parser.add_argument("--stores", action="store_true", help="prepare the annotation stores, too")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--force", action="store_true", help="replace a data set made with other options")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad options or an output folder that is in use."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    values = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(ShapesOptions)
        if hasattr(args, field.name)
    }
    values["formats"] = tuple(name.strip() for name in args.formats.split(",") if name.strip())
    try:
        generation = generate_shapes(
            args.output,
            ShapesOptions(**values),
            workers=args.workers,
            force=args.force,
            progress=not args.quiet,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, counts in generation["counts"].items():
        print(f"{split}: {counts['images']} images, {counts['objects']} objects, {counts['rows']} rows")
    if args.stores:
        make_stores(Path(args.output), values["formats"])
    return 0


def make_stores(folder: Path, formats: Collection[str]) -> None:
    """Prepare `stores` in the folder and, for LVIS files, in the folder `shapes_lvis` beside it."""
    from longtail_det2.data.datasets.coco import prepare_coco
    from longtail_det2.data.datasets.openimages import prepare_openimages

    annotations = folder / "annotations"
    for split in ("train", "validation"):
        images = folder / "images" / split
        if "openimages" in formats:
            boxes, labels = (
                annotations / f"{split}-{kind}.csv" for kind in ("annotations-bbox", "human-imagelabels")
            )
            files = [boxes], [labels], annotations / "class-descriptions.csv", annotations / "hierarchy.json"
            prepare_openimages(*files, images, folder / "stores" / split, progress=False)
        if "lvis" in formats:
            prepare_coco(
                folder / "lvis" / f"{split}.json", images, folder.with_name("shapes_lvis") / "stores" / split
            )


if __name__ == "__main__":
    sys.exit(main())
