#!/usr/bin/env python3
"""Runs a trained detector on pictures and folders: drawn pictures, and a file of predictions if wanted."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from PIL import Image  # noqa: E402

from longtail_det2.data.store import AnnotationStore  # noqa: E402
from longtail_det2.export.source import TrainedDetector, load_detector  # noqa: E402
from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.utils.wording import pluralize  # noqa: E402
from longtail_det2.visualization.multi_label_visualizer import (  # noqa: E402
    MultiLabelVisualizer,
    labels_metadata,
    room_for,
)
from longtail_det2.visualization.pictures import (  # noqa: E402
    PictureFile,
    PicturePredictions,
    Predictor,
    find_pictures,
    write_predictions,
)

EPILOG = """\
examples:
  python scripts/demo.py --config-file output/my_run/config.yaml --weights output/my_run/model_final.pth \\
      --input photo.jpg holidays/ --output drawn
  python scripts/demo.py --config-file own_data/faster_rcnn_small_photos.yaml \\
      --weights output/my_run/model_final.pth --store stores/my_train --input holidays/ --output drawn \\
      --predictions drawn/predictions.csv --score-threshold 0.3

Predictions of several classes on one box are drawn as one object with several labels, and with the mask of
the most certain one if the detector has masks. The predictions file has all of them, whatever their score:
.csv in the form of the Open Images challenge (boxes only), .json as COCO results (with the masks).
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="path or name in the model zoo, YAML or lazy")
    add("--weights", default="", metavar="FILE", help="checkpoint; else the config's published weights")
    add("--input", nargs="+", required=True, metavar="PATH", help="pictures and folders of pictures")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the drawn pictures")
    add("--predictions", type=Path, metavar="FILE", help="also write all predictions: .csv or .json")
    add(
        "--store", type=Path, metavar="DIR", help="annotation store with the names (and hierarchy) of classes"
    )
    add(
        "--score-threshold", type=float, default=0.5, metavar="T", help="draw scores from T on (default: 0.5)"
    )
    add("--device", default="", help="such as cpu or cuda (default: cuda where there is one)")
    add("--opts", nargs="+", default=[], metavar="WORD", help="config options, in the config's own syntax")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run(args)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Draws all pictures, then writes the predictions."""
    if args.predictions is not None and args.predictions.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--predictions {args.predictions}: the file must end in .csv or .json")
    pictures = find_pictures(args.input, leave_out=args.output)
    detector = load_detector(args.config_file, args.weights, args.opts)
    class_ids, names, metadata = describe_classes(detector, args.store)
    predictor = Predictor(detector, args.device or default_device())
    targets = output_names(pictures)
    image_ids = choose_image_ids(pictures)
    with_masks = args.predictions is not None and args.predictions.suffix.lower() == ".json"
    done: list[PicturePredictions] = []
    drawn = 0
    for picture, target, image_id in zip(pictures, targets, image_ids, strict=True):
        try:
            pixels, instances = predictor(picture.path)
        except DataError as error:
            if picture.was_named:
                raise
            print(f"passed over: {error}", file=sys.stderr)
            continue
        done.append(PicturePredictions.of(image_id, instances, with_masks=with_masks))
        drawn += int((instances.scores >= args.score_threshold).sum())
        save_drawing(pixels, instances, metadata, args.score_threshold, args.output / target)
    if not done:
        raise DataError(
            f"{', '.join(args.input)}: none of {len(pictures)} files is a picture that can be read"
        )
    print(
        f"{pluralize(len(done), 'picture')} in {args.output}, {pluralize(drawn, 'prediction')} drawn "
        f"(scores from {args.score_threshold:g})"
    )
    if not drawn:
        best = max((float(one.scores.max()) for one in done if len(one.scores)), default=0.0)
        print(f"the highest score is {best:.3f}: a lower --score-threshold draws something")
    if args.predictions is not None:
        write_predictions(args.predictions, done, class_ids, names)
        print(f"{pluralize(sum(len(one.scores) for one in done), 'prediction')} in {args.predictions}")


def describe_classes(
    detector: TrainedDetector, store_path: Path | None
) -> tuple[Sequence[str], Sequence[str], Any]:
    """Class ids, names and metadata for drawing.

    Of the store, else what the checkpoint and its folder say, else of the config's test data.

    Raises:
        ConfigError: the store has other classes than the checkpoint, or nothing is known about them.
    """
    if store_path is not None:
        store = AnnotationStore.open(store_path)
        if detector.class_ids and detector.class_ids != store.class_ids:
            raise ConfigError(
                f"--store {store_path} has other classes ({store.num_classes}) than {detector.weights} "
                f"({len(detector.class_ids)}): give the store that the detector was trained on"
            )
        return store.class_ids, store.class_names, labels_metadata(store.class_names, store.hierarchy)
    if not detector.class_ids:
        raise ConfigError(
            f"{detector.weights} does not say which classes it is for: give an annotation store with --store"
        )
    if detector.class_names:
        return detector.class_ids, detector.class_names, labels_metadata(detector.class_names)
    store = store_of_config(detector)
    if store is not None:
        return store.class_ids, store.class_names, labels_metadata(store.class_names, store.hierarchy)
    print("the names of the classes are unknown, their ids are drawn: --store gives names", file=sys.stderr)
    return detector.class_ids, detector.class_ids, labels_metadata(detector.class_ids)


def store_of_config(detector: TrainedDetector) -> AnnotationStore | None:
    """A store of the config's test data that has the detector's classes, if there is one on this machine."""
    with suppress(ConfigError, DataError):  # names are a convenience only
        detector.register_data()
        for name in detector.test_datasets:
            path = MetadataCatalog.get(name).get("store_path")
            if path and Path(path).is_dir():
                store = AnnotationStore.open(path)
                if store.class_ids == detector.class_ids:
                    return store
    return None


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def output_names(pictures: Sequence[PictureFile]) -> list[Path]:
    """Where each drawing goes, below the output folder: no two the same."""
    taken: set[Path] = set()
    targets = []
    for picture in pictures:
        target = picture.name.with_suffix(".jpg")
        number = 1
        while target in taken:
            number += 1
            target = picture.name.with_name(f"{picture.name.stem}-{number}.jpg")
        taken.add(target)
        targets.append(target)
    return targets


def choose_image_ids(pictures: Sequence[PictureFile]) -> list[str]:
    """File names without suffix, as in Open Images; whole paths where these are not distinct."""
    stems = [picture.name.stem for picture in pictures]
    if len(set(stems)) == len(stems):
        return stems
    return [picture.path.as_posix() for picture in pictures]


def save_drawing(pixels: np.ndarray, instances: Any, metadata: Any, threshold: float, target: Path) -> None:
    """Writes one drawn picture."""
    room = room_for(int((instances.scores >= threshold).sum()))
    visualizer = MultiLabelVisualizer(pixels, metadata, min_size=room)
    drawing = visualizer.draw_instance_predictions(instances, score_threshold=threshold)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing.get_image()).save(target, quality=92)


if __name__ == "__main__":
    sys.exit(main())
