"""Generate the shapes data set: long-tailed, multi-label and hierarchical by construction."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from longtail_det2.utils.console import tell

EPILOG = """\
example:
  %(prog)s --output datasets/shapes --imbalance 300 --missing-leaf-rate 0.2 --stores
"""
OPTIONS = {
    "train_images": (int, "training images (3000)"),
    "validation_images": (int, "validation images, class-balanced (500)"),
    "image_size": (int, "side of the square images in px (128)"),
    "num_leaves": (int, "leaf classes, 2 to 60 (60)"),
    "imbalance": (float, "frequency of the most over that of the least frequent leaf in training (300)"),
    "min_objects": (int, "correctly annotated training objects that every leaf has at least (4)"),
    "max_objects": (int, "an image has 1 to this many objects (7)"),
    "missing_leaf_rate": (float, "fraction of objects labelled with only one parent, shape or colour (0.1)"),
    "co_label_rate": (float, "fraction of two-coloured objects: two labels, two rows with one box (0.1)"),
    "confusion_rate": (float, "fraction of objects labelled as a similar leaf (0.02)"),
    "group_of_rate": (float, "fraction of boxes over a group of touching instances (0.02)"),
    "negatives_per_image": (int, "classes verified absent per image (8)"),
    "seed": (int, "the same options and seed give the same bytes (0)"),
}
"""Type and help (default) of the fields of `ShapesOptions`, which takes seconds to import."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ShapesOptions`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    for name, (kind, text) in OPTIONS.items():
        flag, default = "--" + name.replace("_", "-"), argparse.SUPPRESS
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=text)
    add = parser.add_argument
    add("--formats", default="openimages,lvis,coco", help="annotations to write, by commas (%(default)s)")
    add("--stores", action="store_true", help="prepare the annotation stores, too")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    add("--force", action="store_true", help="replace a data set made with other options")
    add("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> None:
    """Generate the images and annotation files, with --stores also the stores."""
    from longtail_det2.shapes import ShapesOptions, generate_shapes

    values = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    formats = tuple(name.strip() for name in args.formats.split(",") if name.strip())
    options = ShapesOptions(**values, formats=formats)
    more = {"workers": args.workers, "force": args.force, "progress": not args.quiet}
    generation = generate_shapes(args.output, options, **more)
    for split, counts in generation["counts"].items():
        tell(f"{split}: {counts['images']:,} images, {counts['objects']:,} objects, {counts['rows']:,} rows")
    if args.stores:
        make_stores(args.output, formats)


def make_stores(folder: Path, formats: Collection[str]) -> None:
    """Prepare `stores` in the folder and, for LVIS and COCO files, in folders `shapes_FORM` beside it."""
    from longtail_det2.data.datasets.coco import prepare_coco
    from longtail_det2.data.datasets.openimages import prepare_openimages

    annotations = folder / "annotations"
    for split in ("train", "validation"):
        images = folder / "images" / split
        if "openimages" in formats:
            kinds = ("annotations-bbox", "human-imagelabels")
            boxes, labels = ([annotations / f"{split}-{kind}.csv"] for kind in kinds)
            files = boxes, labels, annotations / "class-descriptions.csv", annotations / "hierarchy.json"
            output = folder / "stores" / split
            tell(str(prepare_openimages(*files, images, output, workers=1, progress=False)))
        for form, hierarchy in (("lvis", None), ("coco", folder / "coco/hierarchy.json")):
            if form in formats:
                output = folder.with_name(f"shapes_{form}") / "stores" / split
                tell(str(prepare_coco(folder / form / f"{split}.json", images, output, hierarchy)))
