"""Write the annotations of the generated data set as Open Images CSVs and COCO JSON.

- Open Images: one row per (object, written label); a two-coloured object has two rows with one box.
- COCO: one annotation per object with `category_ids` (all written labels) and `category_id` (the first);
  groups have `iscrowd` 1 and RLE masks. Images list the verified classes as `pos_category_ids` and
  `neg_category_ids`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .drawing import DrawnObject
from .figures import VisibleRegion
from .plan import PlannedImage
from .vocabulary import ShapesVocabulary

BOX_COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    *("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"),
)


@dataclass(frozen=True)
class ImageRecord:
    """One image with its plan and what is visible; `file_name` is relative to the folder of its split."""

    image_id: str
    file_name: str
    size: int
    planned: PlannedImage
    drawn: list[DrawnObject]

    def positives(self) -> list[int]:
        """Return the classes written for any object of the image."""
        return sorted({label for planned in self.planned.objects for label in planned.labels})


def write_open_images(
    folder: Path, split: str, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary
) -> None:
    """Write `{split}-annotations-bbox.csv` (13 columns) and `{split}-human-imagelabels.csv`."""
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
    _write_csv(folder / f"{split}-annotations-bbox.csv", [BOX_COLUMNS, *boxes])
    header = ("ImageID", "Source", "LabelName", "Confidence")
    _write_csv(folder / f"{split}-human-imagelabels.csv", [header, *labels])


def write_classes(folder: Path, vocabulary: ShapesVocabulary) -> None:
    """Write `class-descriptions.csv` (id, name; no header, in class order) and `hierarchy.json`."""
    rows = zip(vocabulary.class_ids, vocabulary.class_names, strict=True)
    _write_csv(folder / "class-descriptions.csv", rows)
    (folder / "hierarchy.json").write_text(json.dumps(vocabulary.tree(), indent=1) + "\n", encoding="utf-8")


def write_coco(path: Path, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary) -> None:
    """Write COCO JSON of a split; category id = class index + 1, image id = position + 1.

    Also writes `hierarchy.json` beside it, {"child name": ["parent name", ...]}: COCO knows classes by name.
    """
    names, images, annotations = vocabulary.class_names, [], []
    for number, record in enumerate(records, start=1):
        verified = {"pos_category_ids": record.positives(), "neg_category_ids": record.planned.negatives}
        one_based = {key: [label + 1 for label in labels] for key, labels in verified.items()}
        images.append({**image_entry(number, record), **one_based})
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": planned.labels[0] + 1,
                    "category_ids": [label + 1 for label in planned.labels],
                    "iscrowd": int(planned.group),
                    "segmentation": drawn.region.rle if planned.group else drawn.region.polygons,
                    **box_and_area(drawn.region),
                }
            )
    parents = [[names[parent] for parent in above] for above in vocabulary.parents]
    categories = [
        {"id": i + 1, "name": name, "class_id": class_id, "supercategory": above[0] if above else ""}
        for i, (name, class_id, above) in enumerate(zip(names, vocabulary.class_ids, parents, strict=True))
    ]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    hierarchy = {name: above for name, above in zip(names, parents, strict=True) if above}
    path.with_name("hierarchy.json").write_text(json.dumps(hierarchy, indent=1) + "\n", encoding="utf-8")


def box_and_area(region: VisibleRegion) -> dict[str, Any]:
    """Return the fields `bbox` (x, y, width, height) and `area` of an annotation."""
    x0, y0, x1, y1 = region.box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": region.area}


def image_entry(number: int, record: ImageRecord) -> dict[str, Any]:
    """Return the fields of an image that COCO and LVIS share."""
    return {"id": number, "file_name": record.file_name, "width": record.size, "height": record.size}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write COCO or LVIS JSON; `info` and `licenses` are filled in where they are not given."""
    content = {"info": {"description": "longtail_det2 shapes"}, "licenses": [], **content}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
