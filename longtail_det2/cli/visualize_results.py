"""Draw truth and predictions of an annotation store or of a data set registered from one, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.wording import pluralize

from .inputs import add_data_arguments, add_drawing_arguments, image_names, open_data

if TYPE_CHECKING:
    from longtail_det2.data.store import AnnotationStore

EPILOG = """\
examples:
  %(prog)s --output drawings \\
      --predictions output/demo/run/inference/shapes_validation/predictions.csv \\
      --store output/demo/datasets/shapes/stores/validation
  %(prog)s --output drawings \\
      --predictions coco_instances_results.json --store my_store
  %(prog)s --output drawings --predictions predictions.csv \\
      --dataset my_val DATASETS.STORES my_val=annotations/val.json:images/val

Left the truth, right the predictions, with the masks of COCO results that have "segmentation". Predictions of
several classes on one box are drawn as one object, with the mask of the most certain one. Labels of whole
images (scores.npz) are written below: right with a tick, missed with a circle, wrong with a cross.
"""

LARGEST_SIDE = 960
"""Larger images are shrunk to this many pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data, the predictions, and which images are drawn."""
    add_data_arguments(parser)
    add_drawing_arguments(parser)
    add = parser.add_argument
    add(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help="predictions.csv, COCO results (.json) or scores.npz",
    )
    add("--image-id", nargs="+", default=[], metavar="ID", help="draw these images")
    add("--score-threshold", type=float, metavar="T", help="draw predictions from this score on")


def run(args: argparse.Namespace) -> None:
    """Draw the images."""
    import numpy as np
    from PIL import Image

    from longtail_det2.data.datasets.dataset import MultiLabelDataset
    from longtail_det2.visualization.predictions import default_threshold, read_predictions
    from longtail_det2.visualization.report_images import draw_pair

    dataset, metadata, _ = open_data(args)
    if not isinstance(dataset, MultiLabelDataset):
        raise DataError(f"--dataset {args.dataset}: not made of a store; list its file in DATASETS.STORES")
    store = dataset.store
    predictions = read_predictions(args.predictions, store)
    threshold = args.score_threshold
    if threshold is None:
        threshold = default_threshold(store, predictions)
    predictions = predictions.above(threshold)
    args.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(store, args)
    names = image_names([store.image_ids[index].decode() for index in chosen])
    for index, name in zip(chosen, names, strict=True):
        pair = draw_pair(store, index, predictions.of_image(index), metadata, largest_side=LARGEST_SIDE)
        gap = np.full((pair["truth"].shape[0], 8, 3), 255, dtype=np.uint8)
        Image.fromarray(np.hstack([pair["truth"], gap, pair["predictions"]])).save(args.output / name)
    images = pluralize(len(chosen), "image")
    tell(f"{images} in {args.output}, predictions with a score of at least {threshold:.2f}")


def choose(store: AnnotationStore, args: argparse.Namespace) -> list[int]:
    """Return the positions of the images to draw: those of --image-id in its order, else ascending.

    Raises:
        DataError: an image id is not in the data set.
    """
    import numpy as np

    if not args.image_id:
        order = np.random.default_rng(args.seed).permutation(len(store))
        return sorted(order[: args.number].tolist())
    place = {name: index for index, name in enumerate(store.image_ids.astype(str).tolist())}
    unknown = [name for name in args.image_id if name not in place]
    if unknown:
        raise DataError(f"--image-id {unknown[0]}: {store.path} has no such image")
    return [place[name] for name in args.image_id]
