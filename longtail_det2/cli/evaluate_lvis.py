"""Score a results JSON of any detector against LVIS's annotation file: AP, APr, APc, APf and fixed AP.

The results are a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"} with, for masks,
"segmentation" as RLE: what LVIS's and COCO's tools read. The numbers are those of the package lvis
(docs/lvis_metric.md).
Fixed AP (Dave et al. 2021) ranks the best detections of a class over all images, 10,000 by default.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail_det2.utils.console import tell
from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import read_json, write_json

if TYPE_CHECKING:
    from longtail_det2.data.datasets.coco import CocoReport
    from longtail_det2.data.store import AnnotationStore
    from longtail_det2.evaluation.detection_buffer import DetectionColumns

EPILOG = """\
example:
  %(prog)s --annotations lvis_v1_val.json --results bbox.json --output ap.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and the protocol."""
    add = parser.add_argument
    add("--annotations", type=Path, required=True, metavar="JSON", help="LVIS's file of the split")
    add("--results", type=Path, required=True, metavar="JSON", help="detections of any detector")
    add("--task", nargs="+", choices=("bbox", "segm"), default=["bbox"], help="default: bbox")
    add("--images", type=Path, metavar="FILE", help="image ids, one per line: evaluate these alone")
    add("--max-detections", type=int, default=300, metavar="N", help="per image (default: %(default)s)")
    add("--fixed", type=int, default=10_000, metavar="N", help="per class, for fixed AP; 0: none")
    add("--output", type=Path, metavar="JSON", help="also write the means there; null: no object")


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the means in percent by task and name.

    Raises:
        DataError: a file cannot be read, or the results are of other images or categories.
        ConfigError: an option is out of range, or there are no masks.
    """
    from longtail_det2.data.datasets.coco import prepare_coco
    from longtail_det2.evaluation.coco_metric import LVISMetric
    from longtail_det2.evaluation.ground_truth import StoreGroundTruth

    with tempfile.TemporaryDirectory() as folder:
        path = args.annotations
        if args.images is not None:
            path = Path(folder) / "some.json"
            write_json(path, only_images(args.annotations, args.images))
        masks = "segm" in args.task
        store = prepare_coco(path, None, Path(folder) / "store", report=_warn, masks=masks, skip_bad=True)
        metric = LVISMetric(tuple(args.task), args.max_detections, args.fixed)
        metric.check(store)
        columns = read_results(args.results, store, masks, some=args.images is not None)
        found = metric.measure(StoreGroundTruth(store), columns, {}, None)
    summary = found.summary
    return {task: {name: 100 * mean for name, mean in means.items()} for task, means in summary.items()}


def _warn(report: CocoReport) -> None:
    """Say so if bad entries of the ground truth are left out."""
    issues = report.issues
    if any(issues.kinds[kind].severity == "bad" for kind in issues.found):
        sys.stderr.write(f"{issues.source}\n{issues.table()}\n")


def only_images(annotations: Path, listed: Path) -> dict[str, Any]:
    """Return the part of an annotation file about the images that a file lists.

    Raises:
        DataError: a file cannot be read, or an image is not in the annotation file.
    """
    content = read_json(annotations)
    try:
        ids = set(listed.read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(f"{listed}: cannot be read ({error.strerror})") from None
    try:
        images = [one for one in content["images"] if str(one["id"]) in ids]
        absent = sorted(ids - {str(one["id"]) for one in images})
        objects = [one for one in content["annotations"] if str(one["image_id"]) in ids]
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: not in LVIS's form ({error!r})") from None
    if absent:
        raise DataError(f"{listed}: image {absent[0]} is not in the annotation file ({len(absent)} are not)")
    return {**content, "images": images, "annotations": objects}


def read_results(path: Path, store: AnnotationStore, masks: bool, *, some: bool) -> DetectionColumns:
    """Return the detections as columns; images without any count as seen.

    Args:
        path: of the results.
        store: whose images and categories they are of.
        masks: read the segmentations.
        some: leave out detections in other images than the store's, instead of refusing them.

    Raises:
        DataError: names the file and the entry that is wrong.
    """
    import numpy as np

    from longtail_det2.evaluation.coco_results import read_coco_results
    from longtail_det2.evaluation.detection_buffer import join_columns

    found, segmentations = read_coco_results(path, store, masks=masks)
    other = np.flatnonzero(found.image < 0)
    if len(other) and not some:
        raise DataError(f"{path}: detection {other[0]} has an image_id that is not in the annotations")
    order = np.argsort(found.image, kind="stable")[len(other) :]
    counts: list[bytes] = []
    for number in order.tolist() if masks else ():
        try:
            counts.append(_counts(segmentations[number]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: detection {number} has no segmentation ({error!r})") from None
    part = {
        "image": np.arange(len(store)),
        "count": np.bincount(found.image[order], minlength=len(store)),
        "size": store.image_sizes,
        "cls": found.cls[order],
        "score": found.score[order].astype(np.float32),
        "box": found.box[order].astype(np.float32),
        "length": np.array([len(one) for one in counts], dtype=np.int32),
    }
    return join_columns([part], b"".join(counts), masks)


def _counts(segmentation: Any) -> bytes:
    """Return COCO's compressed text of an RLE."""
    import pycocotools.mask as coco_mask

    counts = segmentation["counts"]
    if isinstance(counts, list):
        height, width = segmentation["size"]
        counts = coco_mask.frPyObjects(segmentation, height, width)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def run(args: argparse.Namespace) -> None:
    """Print the means, with --output also write them."""
    results = evaluate(args)
    if args.output is not None:
        known = {
            task: {name: None if math.isnan(value) else value for name, value in means.items()}
            for task, means in results.items()
        }
        write_json(args.output, known, indent=1)
    for task, means in results.items():
        tell(f"{task:16} {'  '.join(f'{name} {value:.2f}' for name, value in means.items())}")
