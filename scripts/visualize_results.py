#!/usr/bin/env python3
"""Draws truth and predictions of an annotation store side by side."""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.visualization.predictions import read_predictions
from longtail_det2.visualization.report_pictures import DetectionsByImage, default_threshold, draw_pair

EPILOG = """\
examples:
  python scripts/visualize_results.py --output pictures \\
      --predictions output/demo/run/inference/shapes_validation/predictions.csv \\
      --store output/demo/datasets/shapes/stores/validation
  python scripts/visualize_results.py --output pictures \\
      --predictions coco_instances_results.json --store my_store

Left the truth, right the predictions. Predictions of several classes on one box are drawn as one object.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help="predictions.csv or COCO results (.json)",
    )
    add("--store", type=Path, required=True, metavar="DIR", help="annotation store with the truth")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    add("--number", type=int, default=16, metavar="N", help="how many pictures (default: 16)")
    add("--seed", type=int, default=0, help="which ones are drawn (default: 0)")
    add("--image-id", nargs="+", default=[], metavar="ID", help="draw these images")
    add("--score-threshold", type=float, metavar="T", help="draw predictions from this score on")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        count, threshold = draw(args)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pictures in {args.output}, predictions with a score of at least {threshold:.2f}")
    return 0


def draw(args: argparse.Namespace) -> tuple[int, float]:
    """Draws the pictures; returns how many, and the score threshold."""
    store = AnnotationStore.open(args.store)
    dataset = MultiLabelDataset(store)
    detections = read_predictions(args.predictions, store)
    threshold = args.score_threshold
    if threshold is None:
        threshold = default_threshold(store, detections)
    by_image = DetectionsByImage(detections, threshold)
    args.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(store, args)
    for index in chosen:
        truth, predicted = draw_pair(dataset, index, by_image[index])
        assert predicted is not None
        gap = np.full((truth.shape[0], 8, 3), 255, dtype=np.uint8)
        name = Path(store.image_ids[index].decode()).name
        Image.fromarray(np.hstack([truth, gap, predicted])).save(args.output / f"{name}.png")
    return len(chosen), threshold


def choose(store: AnnotationStore, args: argparse.Namespace) -> list[int]:
    """Positions of the images to draw, ascending.

    Raises:
        DataError: an image id is not in the store.
    """
    if not args.image_id:
        return sorted(np.random.default_rng(args.seed).permutation(len(store))[: args.number].tolist())
    place = {name.decode(): index for index, name in enumerate(store.image_ids.tolist())}
    unknown = [name for name in args.image_id if name not in place]
    if unknown:
        raise DataError(f"--image-id {unknown[0]}: {store.path} has no such image")
    return [place[name] for name in args.image_id]


if __name__ == "__main__":
    sys.exit(main())
