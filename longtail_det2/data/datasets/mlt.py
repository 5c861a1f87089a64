"""COCO-MLT and VOC-MLT (Wu et al., ECCV 2020): image labels of COCO or VOC annotations.

The images are all of them, those of a published list, or a long tail drawn by the published procedure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np

from longtail_det2.data.datasets.coco import CocoReport, quote_names, write_checked
from longtail_det2.data.datasets.coco_checks import KINDS as COCO_KINDS
from longtail_det2.data.datasets.coco_checks import CocoFile, CocoImages, check_image_files, file_below
from longtail_det2.data.datasets.image_labels import (
    KINDS,
    ClassList,
    image_label_report,
    images_by_name,
    read_lines,
    read_rows,
)
from longtail_det2.data.issues import Issues, Kind
from longtail_det2.data.store import AnnotationStore, ImageLabel
from longtail_det2.utils.errors import ConfigError, DataError

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on
_KINDS = {
    **COCO_KINDS,
    **KINDS,
    "listed_twice": Kind("images that the list has more than once", "one line for each image is needed"),
    "not_annotated": Kind(
        "images of the list that the annotations do not have", "give the annotations that it was made of"
    ),
    "other_labels": Kind(
        "images of the list with other labels than the annotations",
        "give the annotations that it was made of, or a list without labels",
        "error",
    ),
    "xml": Kind("images without a usable XML file of annotations", "complete the folder Annotations"),
}
_EXPONENT, _TAIL = 6, 0.01


@dataclass(frozen=True)
class LongTail:
    """A long tail to draw: images of the most frequent class, those that the curve tends to, and a seed."""

    most: int
    least: int = 1
    seed: int = 0

    def curve(self, num_classes: int) -> np.ndarray:
        """Images per class, descending: (num_classes,) int64, a Pareto density to its 0.99 quantile."""
        places = np.linspace(1, _TAIL ** (-1 / _EXPONENT), num_classes)
        return (places ** -(_EXPONENT + 1) * (self.most - self.least) + self.least).astype(np.int64)

    def draw(self, present: np.ndarray) -> np.ndarray:
        """Draw images: (n,) bool.

        Classes are filled up or cut to the curve one by one, those first that co-occur most. Later ones
        change what earlier ones have, so the curve is met nearly.

        Args:
            present: (n, K) bool, which classes are in which image.
        """
        generator, chosen = np.random.default_rng(self.seed), np.zeros(len(present), dtype=bool)
        together = present.T.astype(np.float32) @ present.astype(np.float32)  # exact below 2**24 images
        together /= together.diagonal()[:, None].clip(min=1)
        order = np.argsort(-together.sum(axis=0, dtype=np.float64), kind="stable")
        for label, wanted in zip(order.tolist(), self.curve(len(order)).tolist(), strict=True):
            surplus = int(np.count_nonzero(chosen & present[:, label])) - wanted
            pool = np.flatnonzero(present[:, label] & (chosen == (surplus > 0)))
            chosen[generator.choice(pool, min(abs(surplus), len(pool)), replace=False)] ^= True
        return chosen


def prepare_mlt(
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    image_set: str = "trainval",
    image_list: str | os.PathLike[str] | None = None,
    draw: LongTail | None = None,
    skip_bad: bool = False,
    workers: int = 1,
    report: Callable[[CocoReport], object] | None = None,
) -> AnnotationStore:
    """Make an annotation store of image labels from annotations of objects.

    Classes are in the order of COCO's category ids, or VOC's 20 in alphabetical order. Of COCO, objects count
    by the rule of `CocoFile.add_object_labels`; of VOC all do, also difficult ones.

    Args:
        annotations: a COCO JSON file, or a folder such as VOCdevkit/VOC2012.
        output: directory of the store; a store that is there is replaced.
        image_root: folder of the images. None: COCO's JSON must say their sizes; of VOC, JPEGImages.
        image_set: of VOC, which file of ImageSets/Main names the images.
        image_list: the images to take: a text file with an image id or file name in each line, or a CSV with
            a column `image_id` and perhaps `labels`, class indices that the annotations must agree with.
        draw: the long tail to draw from the images.
        skip_bad: leave bad entries out instead of refusing the files.
        workers: processes that read image headers.
        report: called once, before anything is written, with what was found.

    Raises:
        DataError: anything wrong with the files (the first entry is named, the others are counted) or with
            the place of the store.
        ConfigError: both a list and a long tail are asked for, or that one cannot be drawn.
    """
    if draw and (image_list or not (0 <= draw.least <= draw.most and draw.most > 0 and draw.seed >= 0)):
        raise ConfigError(
            f"{draw}: wanted are 0 <= least <= most, a seed of 0 or more, and no list of images"
        )
    path = Path(annotations)
    issues = Issues(path, _KINDS, skip_bad)
    if path.is_dir():
        root = Path(image_root) if image_root is not None else path / "JPEGImages"
        source, classes = (
            path / "ImageSets" / "Main" / f"{image_set}.txt",
            ClassList(VOC_CLASSES, VOC_CLASSES),
        )
        images = _read_voc(path, source, issues)
    else:
        root, source = None if image_root is None else Path(image_root), path
        coco = CocoFile(path, None if root is None else os.path.abspath(root), issues)
        images, classes = coco.read_images(), ClassList(coco.class_ids, coco.class_names)
        coco.add_object_labels(images)
    exhaustive = not any(int(ImageLabel.ABSENT) in one.values() for one in images.labels)
    if image_list is not None:
        images.keep &= _in_list(Path(image_list), images, issues)
    elif draw is not None:
        present = np.zeros((len(images.ids), len(classes.ids)), dtype=bool)
        for row in np.flatnonzero(images.keep).tolist():
            present[row, [label for label, status in images.labels[row].items() if status]] = True
        images.keep &= draw.draw(present)
    check_image_files(images, root, issues, workers)
    found = image_label_report(images, classes, issues, exhaustive)
    files = [("annotations", source), *([] if image_list is None else [("list", image_list)])]
    options = {"skip_bad": skip_bad, "image_set": image_set, "draw": draw and asdict(draw)}
    return write_checked(found, output, report, files, options=options, image_root=root)


def _read_voc(folder: Path, source: Path, issues: Issues) -> CocoImages:
    """Images of a file of ImageSets/Main with the classes of all their objects."""
    if not source.is_file():
        raise DataError(f"{source}: no such file; a folder such as VOCdevkit/VOC2012 has it, and Annotations")
    labels: dict[str, dict[int, int]] = {}
    for line, text in enumerate(read_lines(source), 1):
        key = text.strip()
        if key in labels:
            issues.add("repeated_id", f"{source}, line {line}: image {key!r} is there twice")
        elif key and not file_below(None, key):
            issues.add("file_name", f"{source}, line {line}: the image is {key!r}")
        elif key:
            labels[key] = _voc_labels(folder / "Annotations" / f"{key}.xml", issues)
    return images_by_name(labels, ".jpg")


def _voc_labels(path: Path, issues: Issues) -> dict[int, int]:
    try:
        root = ElementTree.parse(path).getroot()
        names = [str(one.findtext("name")).strip() for one in root.findall("object")]
        problem = "" if root.tag == "annotation" else f"it is <{root.tag}>, not <annotation>"
    except (OSError, ElementTree.ParseError) as error:
        names, problem = [], getattr(error, "strerror", None) or str(error)
    issues.add("xml", f"{path}: {problem}", int(problem != ""))
    unknown = [name for name in names if name not in VOC_CLASSES]
    issues.add("unknown_category", f"{path}: {quote_names(unknown)}, none of VOC's 20", len(unknown))
    return {VOC_CLASSES.index(name): int(ImageLabel.PRESENT) for name in sorted({*names} - {*unknown})}


def _in_list(path: Path, images: CocoImages, issues: Issues) -> np.ndarray:
    """(n,) bool: the images that a list names by id or by file name."""
    if not (lines := read_lines(path)):
        raise DataError(f"{path}: is empty; an image id in each line is needed")
    columns = ["image_id"]
    rows = [(line, {"image_id": text.strip()}) for line, text in enumerate(lines, 1) if text.strip()]
    if "image_id" in {cell.strip() for cell in lines[0].split(",")}:
        columns, rows = read_rows(path, columns, ("labels",), issues)
    places = {PurePath(name).stem: place for place, name in enumerate(images.file_names)}
    places |= {key: place for place, key in enumerate(images.ids)}
    chosen = np.zeros(len(images.ids), dtype=bool)
    for line, cells in rows:
        key = cells["image_id"]
        place = places.get(key, places.get(PurePath(key).stem))
        where = f"{path}, line {line}: image {key!r}"
        if place is None:
            issues.add("not_annotated", where)
        elif chosen[place]:
            issues.add("listed_twice", where)
        else:
            chosen[place] = True
            annotated = {str(label) for label, status in images.labels[place].items() if status}
            if "labels" in columns and set(cells["labels"].split()) != annotated:
                own = " ".join(sorted(annotated, key=int))
                issues.add(
                    "other_labels", f"{where} has the labels {cells['labels']!r} there, but {own!r} here"
                )
    return chosen
