"""Writes the annotations of the shapes data set as Open Images CSVs, LVIS JSON and COCO JSON.

All three tell of the same objects; what each format cannot say is left out as that format's own annotators
would:

- Open Images: one row per (object, written label); a two-coloured object has two rows with one box.
- LVIS: leaves only, one annotation per (object, written leaf), visible masks as polygons. An object whose
  leaf was not written has no annotation; of a group only the members that stand free have one. In both cases
  the class is in the image's `not_exhaustive_category_ids`.
- COCO: one annotation per object with `category_ids` (all written labels) and `category_id` (the most
  specific, the first of several); groups have `iscrowd` 1 and run-length masks. Images have the verified
  classes as `pos_category_ids` and `neg_category_ids`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.datasets.shapes_drawing import DrawnObject
from longtail_det2.data.datasets.shapes_masks import VisibleRegion
from longtail_det2.data.datasets.shapes_plan import PlannedImage
from longtail_det2.data.datasets.shapes_vocabulary import ShapesVocabulary

BOX_COLUMNS = (
    "ImageID",
    "Source",
    "LabelName",
    "Confidence",
    "XMin",
    "XMax",
    "YMin",
    "YMax",
    "IsOccluded",
    "IsTruncated",
    "IsGroupOf",
    "IsDepiction",
    "IsInside",
)
IMAGE_LABEL_COLUMNS = ("ImageID", "Source", "LabelName", "Confidence")

_README = """# Generated shapes: long-tailed, multi-labelled, hierarchical

Made by `scripts/generate_shapes.py` of longtail_det2; `generation.json` has the options and the counts.

| path | content |
| --- | --- |
| images/train, images/validation | the images; the file name without ending is the ImageID |
| annotations/SPLIT-annotations-bbox.csv | Open Images boxes, one row per (object, label) |
| annotations/SPLIT-human-imagelabels.csv | Open Images image labels: verified present (1) and absent (0) |
| annotations/class-descriptions.csv | class id, name; no header; in class order |
| annotations/hierarchy.json | Open Images hierarchy; a leaf stands below its shape and below its colour |
| coco/SPLIT.json | COCO form; `category_ids` has all labels of a box |
| coco/hierarchy.json | the parents of each class, by names |
| lvis/SPLIT.json | LVIS v1 form: leaves only, visible masks as polygons |
"""


@dataclass(frozen=True)
class ImageRecord:
    """One image with what was planned and what can be seen; `file_name` is relative to its split's folder."""

    image_id: str
    file_name: str
    size: int
    planned: PlannedImage
    drawn: list[DrawnObject]

    def positives(self) -> list[int]:
        """Classes written for any object of the image."""
        return sorted({label for planned in self.planned.objects for label in planned.labels})


def write_open_images(
    folder: Path, split: str, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary
) -> None:
    """Writes `{split}-annotations-bbox.csv` (13 columns) and `{split}-human-imagelabels.csv`."""
    names = vocabulary.class_ids
    boxes: list[Sequence[object]] = []
    labels: list[Sequence[object]] = []
    for record in records:
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            x0, y0, x1, y1 = (f"{edge / record.size:.6f}" for edge in drawn.region.box)
            flags = (int(drawn.occluded), int(drawn.truncated), int(planned.group), 0, 0)
            boxes += [
                (record.image_id, "xclick", names[label], 1, x0, x1, y0, y1, *flags)
                for label in planned.labels
            ]
        labels += [(record.image_id, "verification", names[label], 1) for label in record.positives()]
        labels += [(record.image_id, "verification", names[label], 0) for label in record.planned.negatives]
    _write_csv(folder / f"{split}-annotations-bbox.csv", BOX_COLUMNS, boxes)
    _write_csv(folder / f"{split}-human-imagelabels.csv", IMAGE_LABEL_COLUMNS, labels)


def write_classes(folder: Path, vocabulary: ShapesVocabulary) -> None:
    """Writes `class-descriptions.csv` (id, name; no header, in class order) and `hierarchy.json`."""
    rows = zip(vocabulary.class_ids, vocabulary.class_names, strict=True)
    _write_csv(folder / "class-descriptions.csv", None, rows)
    (folder / "hierarchy.json").write_text(json.dumps(vocabulary.tree(), indent=1) + "\n", encoding="utf-8")


def write_readme(path: Path) -> None:
    """Writes what the files of the data set are."""
    path.write_text(_README, encoding="utf-8")


def write_coco(path: Path, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary) -> None:
    """Writes COCO JSON of a split; category id = class index + 1, image id = position + 1.

    Beside it stands `hierarchy.json`, `{"child name": ["parent name", ...]}`: COCO knows classes by name.
    """
    annotations: list[dict[str, Any]] = []
    for image_number, record in enumerate(records, start=1):
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            region = drawn.region
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_number,
                    "category_id": planned.labels[0] + 1,
                    "category_ids": [label + 1 for label in planned.labels],
                    "iscrowd": int(planned.group),
                    "segmentation": region.runs if planned.group else region.polygons,
                    **_box_and_area(region),
                }
            )
    categories = []
    for index, (class_id, name) in enumerate(zip(vocabulary.class_ids, vocabulary.class_names, strict=True)):
        parents = vocabulary.parents[index]
        categories.append(
            {
                "id": index + 1,
                "name": name,
                "class_id": class_id,
                "supercategory": vocabulary.class_names[parents[0]] if parents else "",
                "parent_ids": [parent + 1 for parent in parents],
            }
        )
    images = []
    for number, record in enumerate(records, start=1):
        verified = {"pos_category_ids": record.positives(), "neg_category_ids": record.planned.negatives}
        one_based = {name: [label + 1 for label in labels] for name, labels in verified.items()}
        images.append({**_image_entry(number, record), **one_based})
    _write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    names = vocabulary.class_names
    parents = {
        name: [names[parent] for parent in above]
        for name, above in zip(names, vocabulary.parents, strict=True)
        if above
    }
    path.with_name("hierarchy.json").write_text(json.dumps(parents, indent=1) + "\n", encoding="utf-8")


def lvis_frequencies(image_counts: Sequence[int], thresholds: tuple[int, int]) -> list[str]:
    """Letter of each class: "r" up to thresholds[0] images, "c" up to thresholds[1], else "f"."""
    rare, common = thresholds
    return ["r" if count <= rare else "c" if count <= common else "f" for count in image_counts]


def write_lvis(
    path: Path,
    split: str,
    records: Sequence[ImageRecord],
    vocabulary: ShapesVocabulary,
    train_counts: tuple[np.ndarray, np.ndarray],
    thresholds: tuple[int, int],
) -> None:
    """Writes LVIS v1 JSON of a split; category id = leaf index + 1, image id = position + 1.

    Args:
        path: file to write.
        split: folder of the images, for `coco_url`, whose last two parts readers take for the file name.
        records: images of the split.
        vocabulary: the classes.
        train_counts: (images, annotations) of each leaf in the training split, see `lvis_counts`; they
            decide the frequency letters in every split, as in LVIS.
        thresholds: most images of a rare and of a common class.
    """
    annotations: list[dict[str, Any]] = []
    images = []
    for number, record in enumerate(records, start=1):
        for leaf, region in _lvis_regions(record, vocabulary.num_leaves):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": leaf + 1,
                    "segmentation": region.polygons,
                    **_box_and_area(region),
                }
            )
        entry = _image_entry(number, record)
        entry["coco_url"] = f"images/{split}/{record.file_name}"
        absent = {leaf for label in record.planned.negatives for leaf in vocabulary.leaves_below(label)}
        entry["neg_category_ids"] = sorted(leaf + 1 for leaf in absent)
        entry["not_exhaustive_category_ids"] = _not_exhaustive(record)
        images.append(entry)
    image_counts, instance_counts = (counts.tolist() for counts in train_counts)
    letters = lvis_frequencies(image_counts, thresholds)
    categories = [
        {
            "id": leaf + 1,
            "name": vocabulary.class_names[leaf].replace(" ", "_"),
            "synset": vocabulary.class_names[leaf].replace(" ", "_") + ".n.01",
            "synonyms": [vocabulary.class_names[leaf]],
            "def": f"a {vocabulary.class_names[leaf]}",
            "frequency": letters[leaf],
            "image_count": image_counts[leaf],
            "instance_count": instance_counts[leaf],
        }
        for leaf in range(vocabulary.num_leaves)
    ]
    _write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def lvis_counts(records: Iterable[ImageRecord], num_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, annotations) of each leaf as `write_lvis` writes them, (L,) int64 each."""
    images, instances = np.zeros(num_leaves, dtype=np.int64), np.zeros(num_leaves, dtype=np.int64)
    for record in records:
        leaves = [leaf for leaf, _ in _lvis_regions(record, num_leaves)]
        images[list(set(leaves))] += 1
        np.add.at(instances, leaves, 1)
    return images, instances


def _lvis_regions(record: ImageRecord, num_leaves: int) -> list[tuple[int, VisibleRegion]]:
    """(leaf, visible region) of every LVIS annotation of an image."""
    found: list[tuple[int, VisibleRegion]] = []
    for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
        regions = drawn.members if planned.group else (drawn.region,)
        found += [(label, one) for label in planned.labels if label < num_leaves for one in regions]
    return found


def _not_exhaustive(record: ImageRecord) -> list[int]:
    """Category ids of the leaves that have an instance in the image without an annotation of it."""
    partial = {
        leaf
        for planned in record.planned.objects
        for leaf in planned.leaves
        if planned.group or leaf not in planned.labels
    }
    return sorted(leaf + 1 for leaf in partial)


def _box_and_area(region: VisibleRegion) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": region.area}


def _image_entry(number: int, record: ImageRecord) -> dict[str, Any]:
    return {"id": number, "file_name": record.file_name, "width": record.size, "height": record.size}


def _write_csv(path: Path, header: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    content = {"info": {"description": "longtail_det2 shapes"}, "licenses": [], **content}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
