"""The generated data set in LVIS v1 form: the leaves as a flat list of classes, verified image by image.

LVIS is federated. Of the classes of an image, those with an annotation are present; `neg_category_ids` are
verified absent (an absent shape or colour stands for all its leaves); `not_exhaustive_category_ids` have
annotations, but not of all their instances; detections of any other class do not count.

An object has one annotation, of what it is, also where the annotators of the other forms wrote a parent or a
similar leaf. A two-coloured object gets the class with fewer training objects (`CoLabelRule`); its other
class is not exhaustive there, or not verified. LVIS has no boxes around groups: members that are at least
90 % visible are annotated one by one, and their class is not exhaustive.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figures import VisibleRegion
from .plan import PlannedImage, ShapesOptions
from .vocabulary import ShapesVocabulary
from .writers import ImageRecord, box_and_area, image_entry, write_json

logger = logging.getLogger(__name__)


class CoLabelRule:
    """Decide which of its two leaves a two-coloured object is annotated as; one answer per pair of leaves.

    The leaf with fewest annotations so far, at first those of one-coloured objects, takes all objects that it
    shares with one other leaf, the one with most annotations; and so on. A rare leaf thereby keeps about its
    frequency, and none gets more annotations than it has objects.
    """

    def __init__(self, images: Sequence[PlannedImage], num_leaves: int) -> None:
        """Decide for the pairs of the training images; the rule holds in every split."""
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
        """Return the leaf that an object with these leaves is annotated as."""
        pair = tuple(sorted(leaves))
        # Pairs that are not in the training split are left to the frequencies.
        return self._chosen[pair] if pair in self._chosen else min(pair, key=self._order)

    def _order(self, leaf: int) -> tuple[int, int]:
        return self._counts[leaf], leaf


def lvis_content(
    records: Sequence[ImageRecord], split: str, rule: CoLabelRule, vocabulary: ShapesVocabulary
) -> dict[str, Any]:
    """Return `images` and `annotations` of a split; category id = leaf index + 1, image id = position + 1.

    `coco_url` ends with the split's folder and the file name, which readers take from there.
    """
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
        entry = image_entry(number, record)
        entry["coco_url"] = f"images/{split}/{record.file_name}"
        entry["neg_category_ids"] = [leaf + 1 for leaf in sorted(absent)]
        entry["not_exhaustive_category_ids"] = [leaf + 1 for leaf in sorted(partial)]
        images.append(entry)
        annotations += [
            {"image_id": number, "category_id": leaf + 1, "segmentation": region.polygons}
            | box_and_area(region)
            for leaf, region in found
        ]
    return {"images": images, "annotations": [{"id": i, **a} for i, a in enumerate(annotations, start=1)]}


def lvis_categories(
    train: dict[str, Any], vocabulary: ShapesVocabulary, thresholds: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return the leaves with the fields of LVIS; counts and frequency are those of the training split."""
    labels = [(one["category_id"] - 1, one["image_id"]) for one in train["annotations"]]
    instances = Counter(leaf for leaf, _ in labels)
    images = Counter(leaf for leaf, _ in set(labels))
    leaves = vocabulary.class_names[: vocabulary.num_leaves]
    if unseen := [name for leaf, name in enumerate(leaves) if not images[leaf]]:
        logger.warning(
            "LVIS form: no training annotation of %s, whose objects are annotated as their second class; "
            "lower co_label_rate, or use more images",
            ", ".join(unseen),
        )
    return [
        {
            "id": leaf + 1,
            "name": name.replace(" ", "_"),
            "synset": name.replace(" ", "_") + ".n.01",
            "synonyms": [name],
            "def": f"a {name}",
            "frequency": "rcf"[int(np.searchsorted(thresholds, images[leaf]))],
            "image_count": images[leaf],
            "instance_count": instances[leaf],
        }
        for leaf, name in enumerate(leaves)
    ]


def write_lvis(
    folder: Path, records: dict[str, list[ImageRecord]], vocabulary: ShapesVocabulary, options: ShapesOptions
) -> None:
    """Write LVIS v1 JSON, `{split}.json` each, of all splits; "train" decides rules and frequencies."""
    rule = CoLabelRule([record.planned for record in records["train"]], vocabulary.num_leaves)
    contents = {split: lvis_content(found, split, rule, vocabulary) for split, found in records.items()}
    categories = lvis_categories(contents["train"], vocabulary, options.lvis_thresholds)
    rare, common = options.lvis_thresholds
    frequency = f"of the training split: r up to {rare} images, c up to {common}, f more"
    info = {"description": "longtail_det2 shapes", "frequency": frequency}
    for split, content in contents.items():
        write_json(folder / f"{split}.json", {"info": info, **content, "categories": categories})
