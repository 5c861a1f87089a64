#!/usr/bin/env python3
"""Draw truth and predictions of an annotation store or of any registered data set, side by side."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.utils.wording import pluralize  # noqa: E402
from longtail_det2.visualization.inputs import add_data_arguments, image_names, open_data  # noqa: E402
from longtail_det2.visualization.predictions import (  # noqa: E402
    DetectionsByImage,
    TruthIndex,
    default_threshold,
    read_predictions,
)
from longtail_det2.visualization.report_images import draw_pair  # noqa: E402

EPILOG = """\
examples:
  python scripts/visualize_results.py --output drawings \\
      --predictions output/demo/run/inference/shapes_validation/predictions.csv \\
      --store output/demo/datasets/shapes/stores/validation
  python scripts/visualize_results.py --output drawings \\
      --predictions coco_instances_results.json --store my_store
  python scripts/visualize_results.py --output drawings --predictions predictions.csv \\
      --dataset my_val DATASETS.STORES my_val=annotations/val.json:images/val

Left the truth, right the predictions, with the masks of COCO results that have "segmentation". Predictions of
several classes on one box are drawn as one object, with the mask of the most certain one.
"""

LARGEST_SIDE = 960
"""Larger images are shrunk to so many pixels."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser)
    add = parser.add_argument
    add(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help="predictions.csv or COCO results (.json)",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the drawings")
    add("--number", type=int, default=16, metavar="N", help="how many images (default: 16)")
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
    print(
        f"{pluralize(count, 'image')} in {args.output}, predictions with a score of at least {threshold:.2f}"
    )
    return 0


def draw(args: argparse.Namespace) -> tuple[int, float]:
    """Draw the images; returns how many, and the score threshold."""
    dataset, metadata, _ = open_data(args)
    truth = TruthIndex.of_dataset(str(args.dataset or args.store), dataset, metadata)
    detections = read_predictions(args.predictions, truth)
    threshold = args.score_threshold
    if threshold is None:
        threshold = default_threshold(truth.num_labels, detections)
    by_image = DetectionsByImage(detections, threshold)
    args.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(truth, args)
    for index, name in zip(chosen, image_names([truth.image_ids[index] for index in chosen]), strict=True):
        pair = draw_pair(dataset, index, by_image[index], metadata, largest_side=LARGEST_SIDE)
        gap = np.full((pair["truth"].shape[0], 8, 3), 255, dtype=np.uint8)
        Image.fromarray(np.hstack([pair["truth"], gap, pair["predictions"]])).save(args.output / name)
    return len(chosen), threshold


def choose(truth: TruthIndex, args: argparse.Namespace) -> list[int]:
    """Positions of the images to draw, ascending.

    Raises:
        DataError: an image id is not in the data set.
    """
    if not args.image_id:
        order = np.random.default_rng(args.seed).permutation(len(truth.image_ids))
        return sorted(order[: args.number].tolist())
    place = {name: index for index, name in enumerate(truth.image_ids)}
    unknown = [name for name in args.image_id if name not in place]
    if unknown:
        raise DataError(f"--image-id {unknown[0]}: {truth.name} has no such image")
    return [place[name] for name in args.image_id]


if __name__ == "__main__":
    sys.exit(main())
