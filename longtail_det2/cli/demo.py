"""Run a trained detector on image files and folders: drawings, a file of predictions, or both."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import ConfigError, DataError
from longtail_det2.utils.wording import pluralize

from .inputs import add_detector_arguments, distinct_names, open_detector

if TYPE_CHECKING:
    from longtail_det2.export.source import TrainedDetector
    from longtail_det2.visualization.predictions import ImageFile

EPILOG = """\
examples:
  %(prog)s --weights output/my_run --input photo.jpg holidays/ --output drawn
  %(prog)s --weights model.pth --config-file own_data/faster_rcnn_small_photos.yaml \\
      --store stores/my_train --input holidays/ --output drawn --score-threshold 0.3
  %(prog)s --weights output/my_run --input holidays/ --predictions predictions.json

Predictions of several classes on one box are drawn as one object with several labels, and with the mask of
the most certain one if the detector has masks. The predictions file has all of them, whatever their score:
COCO results, with masks if the detector has them. Of a classifier of images the labels stand below the image,
and the file has the scores of all classes, without boxes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, the detector, and what is made of its predictions."""
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="image files and folders of images")
    add("--output", type=Path, metavar="DIR", help="folder for the drawings (default: none are made)")
    add("--predictions", type=Path, metavar="FILE", help="write all predictions: COCO results (.json)")
    store = "annotation store with the names (and hierarchy) of classes"
    add("--store", type=Path, metavar="DIR", help=store)
    threshold = "draw scores from T on (default: 0.5)"
    add("--score-threshold", type=float, default=0.5, metavar="T", help=threshold)
    add("--device", default="", help="such as cpu or cuda (default: cuda where there is one)")
    add_detector_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Predict all images, draw them, then write the predictions."""
    from longtail_det2.data.images import read_image
    from longtail_det2.visualization import predictions

    if args.output is None and args.predictions is None:
        raise ConfigError("nothing to do: give --output for drawings, --predictions for a file, or both")
    if args.predictions is not None and args.predictions.suffix.lower() != ".json":
        raise ConfigError(f"--predictions {args.predictions}: the file must end in .json")
    images = predictions.find_images(args.input, leave_out=args.output)
    detector = open_detector(args)
    class_ids, names, metadata = describe_classes(detector, args.store)
    predictor = predictions.Predictor(detector, args.device)
    # The drawings lie below the output folder as the images lie below theirs.
    targets = distinct_names([str(image.name.with_suffix("")) for image in images], ".jpg")
    sizes: dict[str, tuple[int, int]] = {}
    rows: list[dict[str, Any]] = []
    drawn, best = 0, 0.0
    for image, target, image_id in zip(images, targets, choose_image_ids(images), strict=True):
        try:
            pixels = read_image(image.path, "RGB")
        except DataError as error:
            if image.was_named:
                raise
            sys.stderr.write(f"passed over: {error}\n")
            continue
        instances = predictor.predict(pixels)
        sizes[image_id] = instances.image_size
        drawn += int((instances.scores >= args.score_threshold).sum())
        best = max([best, *instances.scores.tolist()])
        if args.output is not None:
            drawing = predictions.draw_predictions(pixels, instances, metadata, args.score_threshold)
            (args.output / target).parent.mkdir(parents=True, exist_ok=True)
            drawing.save(args.output / target, quality=92)
        if args.predictions is not None:
            rows += predictions.coco_results(image_id, instances, class_ids, names)
    if not sizes:
        raise DataError(f"{', '.join(args.input)}: none of {len(images)} files is an image that can be read")
    if args.output is not None:
        tell(
            f"{pluralize(len(sizes), 'image')} in {args.output}, {pluralize(drawn, 'prediction')} drawn "
            f"(scores from {args.score_threshold:g})"
        )
        if not drawn:
            tell(f"the highest score is {best:.3f}: a lower --score-threshold draws something")
    if args.predictions is not None:
        predictions.write_predictions(args.predictions, rows)
        found = pluralize(len(rows), "prediction")
        tell(f"{found} of {pluralize(len(sizes), 'image')} in {args.predictions}")


def describe_classes(
    detector: TrainedDetector, store_path: Path | None
) -> tuple[Sequence[str], Sequence[str], Any]:
    """Return class ids, names and metadata for drawing.

    Of the store, else what the checkpoint and its folder say.

    Raises:
        ConfigError: the store has other classes than the checkpoint, or nothing is known about them.
    """
    from longtail_det2.data.store import AnnotationStore
    from longtail_det2.visualization.multi_label_visualizer import labels_metadata

    store = None if store_path is None else AnnotationStore(store_path)
    if store is not None and detector.class_ids and detector.class_ids != store.class_ids:
        raise ConfigError(
            f"--store {store_path} has other classes ({store.num_classes}) than {detector.weights} "
            f"({len(detector.class_ids)}): give the store that the detector was trained on"
        )
    if store is None and not detector.class_ids:
        raise ConfigError(
            f"{detector.weights} does not say which classes it is for: give an annotation store with --store"
        )
    if store is not None:
        return store.class_ids, store.class_names, labels_metadata(store.class_names, store.hierarchy)
    names = detector.class_names or detector.class_ids
    if not detector.class_names:
        sys.stderr.write("the names of the classes are unknown, their ids are drawn: --store gives names\n")
    return detector.class_ids, names, labels_metadata(names)


def choose_image_ids(images: Sequence[ImageFile]) -> list[str]:
    """Return file names without suffix, as in Open Images; whole paths where these are not distinct."""
    stems = [image.name.stem for image in images]
    if len(set(stems)) == len(stems):
        return stems
    return [image.path.as_posix() for image in images]
