"""Predictions: made on image files by a trained detector, drawn, read from files and written to them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from longtail_det2.data.images import SUFFIXES
from longtail_det2.data.store import AnnotationStore
from longtail_det2.engine.setup import available_device
from longtail_det2.evaluation.coco_results import read_coco_results
from longtail_det2.evaluation.ground_truth import StoreGroundTruth
from longtail_det2.evaluation.image_label_metric import image_truth, read_scores
from longtail_det2.evaluation.openimages_io import Detections, read_detections
from longtail_det2.export.source import TrainedDetector, as_instances
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import write_json

from .image_labels import add_labels, scored_labels
from .multi_label_visualizer import MultiLabelVisualizer, read_mask, room_for

logger = logging.getLogger(__name__)

_MOST_CLASSES = 100


@dataclass(frozen=True)
class Predictions(Detections):
    """Detections of a file, with normalised boxes, and with masks if there are any.

    Attributes:
        rle: (D,) masks of their image's size, None without one; decoded when they are drawn.
        entry: (D,) number of each detection in the file.
        source: the file.
        truth: of a classifier of images, whose boxes are whole images, what the labels are compared with,
            (n, K) int8 in {1, 0, -1} of the n images of the store; None for detections.
    """

    rle: np.ndarray
    entry: np.ndarray
    source: str
    truth: np.ndarray | None = None

    def of_image(self, image: int) -> Predictions:
        """Return the detections of an image; possibly none. Detections must be in order of images."""
        return self._rows(slice(*np.searchsorted(self.image, (image, image + 1))))

    def above(self, score_threshold: float) -> Predictions:
        """Return the detections with at least this score."""
        return self._rows(self.score >= score_threshold)

    def _rows(self, rows: Any) -> Predictions:
        names = ("image", "cls", "score", "box", "rle", "entry")
        columns = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **columns)

    def mask_of(self, row: int) -> np.ndarray | None:
        """Decode the mask of a row to (height, width) bool; DataError names a detection whose mask is bad."""
        rle = self.rle[row]
        where = f"{self.source}: detection {self.entry[row]}"
        return None if rle is None else read_mask(rle, rle["size"], where)


def default_threshold(store: AnnotationStore, detections: Predictions) -> float:
    """Return a score to draw from: 0.5, or less until as many predictions reach it as there are labels."""
    num_labels = len(store.labels if detections.truth is None else store.present_labels[1])
    if not len(detections) or not num_labels:
        return 0.5
    place = len(detections) - min(num_labels, len(detections))
    return float(min(0.5, np.partition(detections.score, place)[place]))


def read_predictions(path: str | Path, store: AnnotationStore) -> Predictions:
    """Read predictions for the images of a store, sorted by image.

    Args:
        path: `.csv` with ImageID, LabelName, Score, XMin, XMax, YMin, YMax (normalised), or `.json` as
            Detectron2's COCO evaluator writes it: a list of {"image_id", "category_id", "bbox", "score"} with
            bbox XYWH in pixels, and perhaps "segmentation", COCO's RLE. `.npz` with the scores of a
            classifier of images, see `write_scores`; of an image the 100 highest are taken.
        store: gives the order of images and classes; its class ids are the labels, as text. Predictions for
            other images are left out, with a warning.

    Raises:
        DataError: the file is unreadable or malformed, names an unknown class, or has a mask that is not of
            its image's size. (Whether a mask's counts are sound is found when it is drawn.)
    """
    path = Path(path)
    truth = None
    if path.suffix.lower() == ".npz":
        scores = read_scores(path, store)
        best = np.argsort(-scores.score, axis=1, kind="stable")[:, :_MOST_CLASSES]
        score = np.take_along_axis(scores.score, best, axis=1).ravel()
        box = np.tile(np.array([0, 0, 1, 1], np.float32), (len(score), 1))
        boxes = Detections(scores.image.repeat(best.shape[1]), best.ravel(), score, box)
        truth, unknown, rle = image_truth(StoreGroundTruth(store)), 0, np.full(len(boxes), None)
    elif path.suffix.lower() == ".json":
        boxes, rle = read_coco_results(path, store)
        unknown = np.count_nonzero(boxes.image < 0)
        # The last row, at -1, is that of other images.
        sides = np.vstack([store.image_sizes[:, [1, 0, 1, 0]].clip(1), np.ones(4)])
        boxes = replace(boxes, box=boxes.box / sides[boxes.image])
    else:
        image_ids = [name.decode() for name in store.image_ids.tolist()]
        boxes, left_out = read_detections(path, store.class_ids, image_ids)
        unknown, rle = left_out["unknown_image"], np.full(len(boxes), None)
    if unknown:
        logger.warning("%s: %d predictions are of images that are not in %s", path, unknown, store.path)
    found = Predictions(**vars(boxes), rle=rle, entry=np.arange(len(boxes)), source=str(path), truth=truth)
    order = np.argsort(found.image, kind="stable")
    return found._rows(order[found.image[order] >= 0])


def coco_results(
    image_id: str, instances: Instances, class_ids: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the predictions of one image, on the CPU, as COCO results with the name of the class besides.

    Masks become compressed RLE; labels of whole images have no "bbox". Of the K classes `class_ids` are the
    identifiers, `names` the names to show.
    """
    if instances.has("pred_boxes"):
        rows = instances_to_coco_json(instances, image_id)
    else:
        columns = zip(instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
        rows = [{"image_id": image_id, "category_id": label, "score": score} for label, score in columns]
    for row in rows:
        index = row["category_id"]
        class_id = str(class_ids[index])
        row.update(category_id=int(class_id) if class_id.isdecimal() else class_id, category=names[index])
    return rows


def write_predictions(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write COCO results (see `coco_results`); the file appears when it is complete.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rows)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


class ImageFile(NamedTuple):
    """One input; `name` is its path below the folder that was named, or the file's name."""

    path: Path
    name: Path
    was_named: bool  # itself, not its folder


def find_images(inputs: Sequence[str | Path], leave_out: Path | None = None) -> list[ImageFile]:
    """Find image files, given by themselves or by folders at any depth, each once, folders in name order.

    Of folders, the files with an image's suffix are taken, and none below `leave_out`, where the results go.

    Raises:
        DataError: an input does not exist, or there is no image in any folder.
    """
    results = leave_out and leave_out.resolve()
    found: dict[Path, ImageFile] = {}
    for one in map(Path, inputs):
        if not one.exists():
            raise DataError(f"{one}: no such file or folder")
        if not one.is_dir():
            found.setdefault(one.resolve(), ImageFile(one, Path(one.name), was_named=True))
            continue
        for path in sorted(one.rglob("*")):
            name, real = path.relative_to(one), path.resolve()
            passed = results in real.parents or any(part.startswith(".") for part in name.parts[:-1])
            if path.suffix.lower() in SUFFIXES and path.is_file() and not passed:
                found.setdefault(real, ImageFile(path, name, was_named=False))
    if not found:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{', '.join(map(str, inputs))}: no images there; their names end in {suffixes}")
    return list(found.values())


class Predictor:
    """Runs a trained detector on images, one by one, as the evaluation would."""

    def __init__(self, detector: TrainedDetector, device: str = "") -> None:
        """Move the model to `device`; "" takes CUDA where there is some."""
        self._detector = detector
        self._model = detector.model.to(device or available_device("cuda")).eval()

    def predict(self, pixels: np.ndarray) -> Instances:
        """Predict an upright image, (H, W, 3) uint8 RGB.

        Returns:
            On the CPU: `pred_boxes` in pixels of the image, `pred_classes`, `scores`, and of a detector with
            masks `pred_masks` (n, H, W) bool. Of a classifier of images `pred_classes` and `scores` of all
            classes, best first.
        """
        ordered = pixels[:, :, ::-1] if self._detector.image_format == "BGR" else pixels
        height, width = pixels.shape[:2]
        scaled = self._detector.input_of(ordered)
        with torch.no_grad():
            (output,) = self._model([{"image": scaled, "height": height, "width": width}])
        if "instances" not in output:
            return as_instances(output["scores"].cpu(), (height, width))
        return output["instances"].to("cpu")


def draw_predictions(
    pixels: np.ndarray, instances: Instances, metadata: Metadata, threshold: float
) -> Image.Image:
    """Draw predictions with scores from `threshold` on over an image (H, W, 3) uint8 RGB, or below it."""
    shown = instances[instances.scores >= threshold]
    visualizer = MultiLabelVisualizer(pixels, metadata, min_size=room_for(len(shown)))
    if not shown.has("pred_boxes"):
        columns = shown.pred_classes.tolist(), shown.scores.tolist()
        labels = scored_labels(metadata.thing_classes, *columns)
        return Image.fromarray(add_labels(visualizer.img, labels))
    drawing = visualizer.draw_instance_predictions(instances, score_threshold=threshold)
    return Image.fromarray(drawing.get_image())
