"""Writes the annotations of the shapes data set as Open Images CSVs and COCO JSON.

Both, and LVIS JSON of `shapes_lvis`, tell of the same objects; what each format cannot say is left out as
that format's own annotators would:

- Open Images: one row per (object, written label); a two-coloured object has two rows with one box.
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
                    **box_and_area(region),
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
        images.append({**image_entry(number, record), **one_based})
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    names = vocabulary.class_names
    parents = {
        name: [names[parent] for parent in above]
        for name, above in zip(names, vocabulary.parents, strict=True)
        if above
    }
    path.with_name("hierarchy.json").write_text(json.dumps(parents, indent=1) + "\n", encoding="utf-8")


def box_and_area(region: VisibleRegion) -> dict[str, Any]:
    """The fields `bbox` (x, y, width, height) and `area` of an annotation."""
    x0, y0, x1, y1 = region.box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": region.area}


def image_entry(number: int, record: ImageRecord) -> dict[str, Any]:
    """The fields of an image that COCO and LVIS share."""
    return {"id": number, "file_name": record.file_name, "width": record.size, "height": record.size}


def _write_csv(path: Path, header: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes COCO or LVIS JSON; `info` and `licenses` are filled in where they are not given."""
    content = {"info": {"description": "longtail_det2 shapes"}, "licenses": [], **content}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
