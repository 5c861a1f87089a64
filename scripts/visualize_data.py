#!/usr/bin/env python3
"""Draws annotated images of an annotation store or of any registered data set, several labels a box."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image

from longtail_det2.data.build import get_dataset
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.store import AnnotationStore
from longtail_det2.engine.config_files import load_cfg
from longtail_det2.engine.defaults import register_datasets
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.visualization.multi_label_visualizer import MultiLabelVisualizer, labels_metadata

EPILOG = """\
examples:
  python scripts/visualize_data.py --store datasets/shapes/stores/train --output pictures
  python scripts/visualize_data.py --dataset shapes_train --class "pink cross" --number 5 --output pictures
  python scripts/visualize_data.py --store datasets/shapes/stores/train --output pictures --augmented \\
      --config-file shapes/faster_rcnn_tiny_sigmoid_shapes.yaml

Dashed boxes enclose groups. With --augmented the pictures show what the model is trained on: the image after
augmentation, each object's labels with their ancestors, and how many classes are ignored for it.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, metavar="DIR", help="annotation store")
    source.add_argument("--dataset", metavar="NAME", help="registered data set")
    add = parser.add_argument
    add("--root", default="", metavar="DIR", help="folder of the built-in data sets")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    add("--number", type=int, default=16, metavar="N", help="how many pictures (default: 16)")
    add("--seed", type=int, default=0, help="which ones are drawn (default: 0)")
    add("--class", dest="class_name", metavar="NAME", help="only images with this class (name or id)")
    add("--augmented", action="store_true", help="show what the mapper hands to the model")
    add("--config-file", default="", metavar="FILE", help="augmentation and truth as in this config")
    add("opts", nargs="*", help="config options: KEY VALUE ...")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        count = draw(args)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pictures in {args.output}")
    return 0


def draw(args: argparse.Namespace) -> int:
    """Draws the pictures; returns how many."""
    dataset, metadata = open_data(args)
    chosen = choose(dataset, metadata, args)
    picture_of = augmented_drawer(dataset, metadata, args) if args.augmented else annotation_drawer(metadata)
    args.output.mkdir(parents=True, exist_ok=True)
    for index in chosen:
        record = dataset[index]
        picture_of(record).save(str(args.output / f"{Path(str(record['image_id'])).name}.png"))
    return len(chosen)


def open_data(args: argparse.Namespace) -> tuple[Any, Any]:
    """The data set (records by index) and its metadata."""
    if args.store is not None:
        store = AnnotationStore.open(args.store)
        return MultiLabelDataset(store), labels_metadata(store.class_names, store.hierarchy)
    register_datasets(args.root)
    return get_dataset(args.dataset), MetadataCatalog.get(args.dataset)


def choose(dataset: Any, metadata: Any, args: argparse.Namespace) -> list[int]:
    """Positions of the images to draw, ascending."""
    order = np.random.default_rng(args.seed).permutation(len(dataset))
    if args.class_name is None:
        return sorted(order[: args.number].tolist())
    label = class_index(dataset, metadata, args.class_name)
    chosen: list[int] = []
    for index in order.tolist():
        annotations = dataset[index].get("annotations", ())
        if any(label in one.get("category_ids", [one["category_id"]]) for one in annotations):
            chosen.append(index)
        if len(chosen) == args.number:
            break
    return sorted(chosen)


def class_index(dataset: Any, metadata: Any, name: str) -> int:
    """Index of a class by name or id.

    Raises:
        DataError: there is none.
    """
    names, ids = list(metadata.thing_classes), list(getattr(dataset, "class_ids", ()))
    if name in names:
        return names.index(name)
    if name in ids:
        return ids.index(name)
    raise DataError(f"--class {name!r}: no such class; there are {', '.join(names[:20])} ...")


def annotation_drawer(metadata: Any) -> Callable[[dict[str, Any]], Any]:
    """Draws a record's annotations on its image."""

    def picture(record: dict[str, Any]) -> Any:
        pixels = read_image(record["file_name"], format="RGB")
        return MultiLabelVisualizer(pixels, metadata).draw_dataset_dict(record)

    return picture


def augmented_drawer(
    dataset: Any, metadata: Any, args: argparse.Namespace
) -> Callable[[dict[str, Any]], Any]:
    """Draws what the training mapper makes of a record."""
    cfg = load_cfg(args.config_file, args.opts)
    if args.dataset is not None:
        cfg.DATASETS.TRAIN = (args.dataset,)
        arguments = MultiLabelDatasetMapper.from_config(cfg, is_train=True)
    else:
        register_datasets(stores=[f"store_to_draw={args.store}"])
        cfg.DATASETS.TRAIN = ("store_to_draw",)
        arguments = MultiLabelDatasetMapper.from_config(cfg, is_train=True)
    mapper = MultiLabelDatasetMapper(**arguments)

    def picture(record: dict[str, Any]) -> Any:
        result = mapper(record)
        pixels = convert_image_to_rgb(result["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
        return MultiLabelVisualizer(pixels, metadata).draw_truth(result["instances"])

    return picture


if __name__ == "__main__":
    sys.exit(main())
