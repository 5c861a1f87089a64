"""Write the annotations of the generated data set as Open Images CSVs, COCO JSON and LVIS v1 JSON.

- Open Images: one row per (object, written label); a two-coloured object has two rows with one box.
- COCO: one annotation per object with `category_ids` (all written labels) and `category_id` (the first);
  groups have `iscrowd` 1 and RLE masks.
- LVIS: leaves only, one annotation per object, of what it is. `neg_category_ids` are verified absent (an
  absent shape or colour stands for all its leaves). A two-coloured object gets the class with fewer training
  objects (`CoLabelRule`), its other class is not exhaustive. Of groups, the members that are at least 90 %
  visible are annotated, and their class is not exhaustive.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.utils.io import write_json

from .drawing import DrawnObject, VisibleRegion
from .plan import PlannedImage
from .vocabulary import ShapesVocabulary

BOX_COLUMNS = (
    *("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"),
    "IsGroupOf",
)


@dataclass(frozen=True)
class ImageRecord:
    """One image with its plan and what is visible; `file_name` is relative to the folder of its split."""

    file_name: str
    size: int
    planned: PlannedImage
    drawn: list[DrawnObject]

    @property
    def image_id(self) -> str:
        """Return the name of the file without its ending."""
        return Path(self.file_name).stem

    def positives(self) -> list[int]:
        """Return the classes written for any object of the image."""
        return sorted({label for planned in self.planned.objects for label in planned.labels})


def write_open_images(
    folder: Path, split: str, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary
) -> None:
    """Write `{split}-annotations-bbox.csv` (9 columns) and `{split}-human-imagelabels.csv`."""
    names = vocabulary.class_ids
    boxes: list[Sequence[object]] = []
    labels: list[Sequence[object]] = []
    for record in records:
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            x0, y0, x1, y1 = (f"{edge / record.size:.6f}" for edge in drawn.region.box)
            place = (x0, x1, y0, y1, int(planned.group))
            boxes += [(record.image_id, "xclick", names[label], 1, *place) for label in planned.labels]
        labels += [(record.image_id, "verification", names[label], 1) for label in record.positives()]
        labels += [(record.image_id, "verification", names[label], 0) for label in record.planned.negatives]
    _write_csv(folder / f"{split}-annotations-bbox.csv", [BOX_COLUMNS, *boxes])
    header = ("ImageID", "Source", "LabelName", "Confidence")
    _write_csv(folder / f"{split}-human-imagelabels.csv", [header, *labels])


def write_classes(folder: Path, vocabulary: ShapesVocabulary) -> None:
    """Write `class-descriptions.csv` (id, name; no header, in class order) and `hierarchy.json`."""
    _write_csv(
        folder / "class-descriptions.csv", zip(vocabulary.class_ids, vocabulary.class_names, strict=True)
    )
    write_json(folder / "hierarchy.json", vocabulary.tree())


def write_coco(path: Path, records: Sequence[ImageRecord], vocabulary: ShapesVocabulary) -> None:
    """Write COCO JSON of a split; category id = class index + 1, image id = position + 1.

    Also writes `hierarchy.json` beside it, {"child name": ["parent name", ...]}: COCO knows classes by name.
    """
    names, images, annotations = vocabulary.class_names, [], []
    for number, record in enumerate(records, start=1):
        verified = {"pos_category_ids": record.positives(), "neg_category_ids": record.planned.negatives}
        one_based = {key: [label + 1 for label in labels] for key, labels in verified.items()}
        images.append({**_image_entry(number, record), **one_based})
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": planned.labels[0] + 1,
                    "category_ids": [label + 1 for label in planned.labels],
                    "iscrowd": int(planned.group),
                    "segmentation": drawn.region.rle if planned.group else drawn.region.polygons,
                    **_box_and_area(drawn.region),
                }
            )
    parents = [[names[parent] for parent in above] for above in vocabulary.parents]
    categories = [
        {"id": i + 1, "name": name, "class_id": class_id, "supercategory": above[0] if above else ""}
        for i, (name, class_id, above) in enumerate(zip(names, vocabulary.class_ids, parents, strict=True))
    ]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    hierarchy = {name: above for name, above in zip(names, parents, strict=True) if above}
    write_json(path.with_name("hierarchy.json"), hierarchy)


class CoLabelRule:
    """Decide which of its two leaves a two-coloured object is annotated as; one answer per pair of leaves.

    The leaf with fewest annotations so far takes all objects that it shares with the one leaf that has most;
    and so on. A rare leaf thereby keeps about its frequency.
    """

    def __init__(self, images: Sequence[PlannedImage], num_leaves: int) -> None:
        sets = Counter(tuple(sorted(one.leaves)) for image in images for one in image.objects)
        left = {pair: number for pair, number in sets.items() if len(pair) == 2}
        self._counts = [sets[leaf,] for leaf in range(num_leaves)]
        self._chosen: dict[tuple[int, ...], int] = {}
        while left:
            pairs = Counter(leaf for pair in left for leaf in pair)
            # Of those with equally many, first the one that has the smaller choice.
            leaf = min(pairs, key=lambda one: (self._counts[one], pairs[one], one))
            partner = max((sum(pair) - leaf for pair in left if leaf in pair), key=self._order)
            pair = (min(leaf, partner), max(leaf, partner))
            self._chosen[pair] = leaf
            self._counts[leaf] += left.pop(pair)

    def leaf_of(self, leaves: Sequence[int]) -> int:
        """Return the leaf that an object is annotated as; frequencies decide on pairs unseen in training."""
        pair = tuple(sorted(leaves))
        return self._chosen[pair] if pair in self._chosen else min(pair, key=self._order)

    def _order(self, leaf: int) -> tuple[int, int]:
        return self._counts[leaf], leaf


def lvis_content(
    records: Sequence[ImageRecord], split: str, rule: CoLabelRule, vocabulary: ShapesVocabulary
) -> dict[str, Any]:
    """Return `images` and `annotations` of a split; category id = leaf index + 1, image id = position + 1."""
    images, annotations = [], []
    below = [vocabulary.leaves_below(label) for label in range(vocabulary.num_classes)]
    for number, record in enumerate(records, start=1):
        found: list[tuple[int, VisibleRegion]] = []
        partial: set[int] = set()
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            leaf = rule.leaf_of(planned.leaves)
            found += [(leaf, region) for region in (drawn.members if planned.group else (drawn.region,))]
            partial |= set(planned.leaves) - (set() if planned.group else {leaf})
        partial &= {leaf for leaf, _ in found}
        absent = {leaf for label in record.planned.negatives for leaf in below[label]}
        entry = _image_entry(number, record)
        entry["coco_url"] = f"images/{split}/{record.file_name}"
        entry["neg_category_ids"] = [leaf + 1 for leaf in sorted(absent)]
        entry["not_exhaustive_category_ids"] = [leaf + 1 for leaf in sorted(partial)]
        images.append(entry)
        for leaf, region in found:
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": leaf + 1}
            annotations.append({**one, "segmentation": region.polygons, **_box_and_area(region)})
    return {"images": images, "annotations": annotations}


def lvis_categories(train: dict[str, Any], vocabulary: ShapesVocabulary) -> list[dict[str, Any]]:
    """Return the leaves with LVIS's counts and frequency: r up to 10 training images, c up to 100, else f."""
    labels = [(one["category_id"] - 1, one["image_id"]) for one in train["annotations"]]
    instances = Counter(leaf for leaf, _ in labels)
    images = Counter(leaf for leaf, _ in set(labels))
    leaves = vocabulary.class_names[: vocabulary.num_leaves]
    return [
        {
            "id": leaf + 1,
            "name": name.replace(" ", "_"),
            "frequency": "rcf"[int(np.searchsorted((10, 100), images[leaf]))],
            "image_count": images[leaf],
            "instance_count": instances[leaf],
        }
        for leaf, name in enumerate(leaves)
    ]


def write_lvis(folder: Path, records: dict[str, list[ImageRecord]], vocabulary: ShapesVocabulary) -> None:
    """Write LVIS v1 JSON, `{split}.json` each, of all splits; "train" decides rules and frequencies."""
    rule = CoLabelRule([record.planned for record in records["train"]], vocabulary.num_leaves)
    contents = {split: lvis_content(found, split, rule, vocabulary) for split, found in records.items()}
    categories = lvis_categories(contents["train"], vocabulary)
    for split, content in contents.items():
        write_json(folder / f"{split}.json", {**content, "categories": categories})


def _box_and_area(region: VisibleRegion) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": region.area}


def _image_entry(number: int, record: ImageRecord) -> dict[str, Any]:
    return {"id": number, "file_name": record.file_name, "width": record.size, "height": record.size}


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
