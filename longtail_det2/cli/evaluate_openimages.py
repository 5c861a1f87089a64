"""Score a predictions CSV with the metric of the Open Images detection challenge.

Annotations are given as released; boxes and image-level labels are expanded by the hierarchy here. The
predictions are scored as they are, unless --expand-predictions repeats each of them for all ancestors of its
class. Coordinates of all files are normalised by the image's width and height.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import longtail_det2
from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import write_json

if TYPE_CHECKING:
    from longtail_det2.evaluation.openimages_metric import OpenImagesResult

EPILOG = """\
example:
  %(prog)s \\
      --boxes challenge-2019-validation-detection-bbox.csv \\
      --image-labels challenge-2019-validation-detection-human-imagelabels.csv \\
      --hierarchy challenge-2019-label500-hierarchy.json \\
      --classes challenge-2019-classes-description-500.csv \\
      --predictions predictions.csv --output result.json

files:
  predictions   ImageID,LabelName,Score,XMin,XMax,YMin,YMax
  boxes         ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf (1; 0, -1 and no column: not a group)
  image labels  ImageID,LabelName,Confidence (1 verified present, 0 verified absent)
  classes       LabelName,DisplayName
Columns are found by the header's names, in any order; other columns are ignored. Only the class file may lack
a header.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and the protocol."""
    add = parser.add_argument
    add("--boxes", type=Path, required=True, metavar="CSV", help="annotated boxes")
    add("--image-labels", type=Path, metavar="CSV", help="human-verified image-level labels")
    add("--hierarchy", type=Path, metavar="JSON", help="label hierarchy (a tree, or {child: [parents]})")
    add("--classes", type=Path, required=True, metavar="CSV", help="the classes that are evaluated")
    add("--predictions", type=Path, required=True, metavar="CSV", help="scored boxes")
    add("--output", type=Path, required=True, metavar="JSON", help="result file")
    expand = "repeat each prediction for all ancestors of its class (not the challenge's number)"
    add("--expand-predictions", action="store_true", help=expand)
    none = "expand nothing: annotations are expanded already, or shall not be (needs no --hierarchy)"
    add("--no-expansion", action="store_true", help=none)
    weight = "weight of a group-of box (default: %(default)s; 0: finding it neither helps nor harms)"
    add("--group-of-weight", type=float, default=1.0, metavar="W", help=weight)
    forget = "forget image-level labels: the classes of an image's boxes are its verified classes"
    add("--no-image-labels", action="store_true", help=forget)
    unverified = "count detections of unverified classes as false positives (V2 protocol, with weight 0)"
    add("--no-verified-filter", action="store_true", help=unverified)
    add("--iou", type=float, default=0.5, metavar="T", help="least IoU of a match, in (0, 1] (default: 0.5)")
    unknown = "rows of any file whose label is not in the class file (default: error)"
    add("--on-unknown-label", choices=("error", "skip"), default="error", help=unknown)


def run(args: argparse.Namespace) -> None:
    """Write the result document and print its summary."""
    check_arguments(args)
    document = evaluate(args)
    write_json(args.output, document, indent=1)
    tell(summary(document))


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for contradictory options, before any file is read."""
    from longtail_det2.evaluation.openimages_metric import check_options

    if args.image_labels is None and not args.no_image_labels:
        raise ConfigError("give --image-labels, or --no-image-labels to do without (a different number)")
    if args.hierarchy is None and not args.no_expansion:
        raise ConfigError("give --hierarchy, or --no-expansion to do without")
    if args.expand_predictions and args.no_expansion:
        raise ConfigError("--expand-predictions contradicts --no-expansion")
    check_options(args.iou, args.group_of_weight)
    if not args.output.parent.is_dir():
        raise ConfigError(f"--output: folder {args.output.parent} does not exist")
    if args.output.is_dir():
        raise ConfigError(f"--output: {args.output} is a folder, give a file name")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Read the files and compute the result document.

    Raises:
        DataError: a file that cannot be used.
        ConfigError: an option out of range.
    """
    from longtail_det2.data.hierarchy import LabelHierarchy
    from longtail_det2.data.open_images_csv import read_classes
    from longtail_det2.evaluation.openimages_io import read_detections, read_ground_truth
    from longtail_det2.evaluation.openimages_metric import evaluate_detections, expand_ground_truth

    class_ids, _ = read_classes(args.classes)
    hierarchy = None
    if not args.no_expansion:
        hierarchy = LabelHierarchy.from_json(args.hierarchy, class_ids, unlisted="contract")
    image_labels = None if args.no_image_labels else args.image_labels
    truth, image_ids, skipped = read_ground_truth(args.boxes, image_labels, class_ids, args.on_unknown_label)
    if hierarchy is not None:
        truth = expand_ground_truth(truth, hierarchy)
    detections, left_out = read_detections(args.predictions, class_ids, image_ids, args.on_unknown_label)
    result = evaluate_detections(
        truth,
        detections,
        len(class_ids),
        iou_threshold=args.iou,
        group_of_weight=args.group_of_weight,
        verified_filter=not args.no_verified_filter,
        prediction_hierarchy=hierarchy if args.expand_predictions else None,
    )
    counts = dict(result.counts)
    for name in ("detections", "image_not_annotated"):
        counts[name] += left_out["unknown_image"]
    counts["rows_of_unknown_labels"] = left_out["unknown_label"] + skipped
    return result_document(result, class_ids, counts, args)


def result_document(
    result: OpenImagesResult, class_ids: Sequence[str], counts: dict[str, int], args: argparse.Namespace
) -> dict[str, Any]:
    """Return the JSON content; a number that does not exist (no ground truth) is null."""
    options = {name: value for name, value in vars(args).items() if name != "output"}
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    return {
        "metric": result.metric,
        "unit": "AP and mAP are fractions in [0, 1]; null: no ground truth",
        "mAP": None if math.isnan(result.mean_ap) else result.mean_ap,
        "AP": dict(
            zip(class_ids, [None if math.isnan(ap) else ap for ap in result.ap.tolist()], strict=True)
        ),
        "num_gt": dict(zip(class_ids, result.num_gt.tolist(), strict=True)),
        "num_images": result.num_images,
        "num_classes_with_gt": int((result.num_gt > 0).sum()),
        "counts": counts,
        "options": options,
        "longtail_det2": longtail_det2.__version__,
    }


def summary(document: dict[str, Any]) -> str:
    """Return a few lines for the terminal."""
    counts, mean = document["counts"], document["mAP"]
    lines = [
        f"{document['metric']}: {'none (no ground truth)' if mean is None else f'{mean:.6f}'}",
        f"  mean over {document['num_classes_with_gt']} of {len(document['AP'])} classes "
        f"(those with ground truth), {document['num_images']} annotated images",
        f"  {counts['detections']} detections: {counts['true_positives']} true positives, "
        f"{counts['false_positives']} false positives, "
        f"{counts['absorbed_by_group_of']} absorbed by group-of boxes",
        f"  not counted: {counts['image_not_annotated']} of images without annotation, "
        f"{counts['class_not_verified']} of unverified classes, {counts['inverted']} inverted, "
        f"{counts['over_limit']} over the limit per class and image",
    ]
    if counts["rows_of_unknown_labels"]:
        lines.append(
            f"  skipped {counts['rows_of_unknown_labels']} rows whose label is not in the class file"
        )
    return "\n".join(lines)
