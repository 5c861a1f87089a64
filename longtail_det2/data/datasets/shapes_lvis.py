"""The shapes data set in LVIS v1 form: the leaves as a flat list of classes, verified image by image.

LVIS is federated: an image is annotated for some classes only. Of the classes of an image

- those with an annotation are present,
- `neg_category_ids` are verified to be absent: the absent classes of the other forms, a shape or colour that
  is absent standing for all its leaves,
- `not_exhaustive_category_ids` have annotations, but not of all their instances,
- nobody looked for the others: detections of them neither count as right nor as wrong.

By default (`lvis_labels` "leaf") an object has one annotation, of what it truly is, also where the
annotators of the other forms wrote a parent or a similar leaf. A two-coloured object truly is of two classes.
It gets the one of them that has fewer training objects, always the same for a pair of classes, so that this
can be learned (`CoLabelRule`). The other class is not exhaustive there, or nobody looked for it. LVIS has no
boxes around groups: the members that are seen whole are annotated one by one, and their class is not
exhaustive.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail_det2.data.datasets.lvis_json import frequency_groups
from longtail_det2.data.datasets.shapes_masks import VisibleRegion
from longtail_det2.data.datasets.shapes_options import ShapesOptions
from longtail_det2.data.datasets.shapes_plan import SPLITS, PlannedImage
from longtail_det2.data.datasets.shapes_vocabulary import ShapesVocabulary
from longtail_det2.data.datasets.shapes_writers import ImageRecord, box_and_area, image_entry, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LvisImage:
    """What is annotated in an image.

    Attributes:
        record: the image.
        annotations: (leaf, visible region) each.
        not_exhaustive: annotated leaves with instances that are not, ascending.
        absent: leaves verified to be absent, ascending.
    """

    record: ImageRecord
    annotations: tuple[tuple[int, VisibleRegion], ...]
    not_exhaustive: tuple[int, ...]
    absent: tuple[int, ...]


class CoLabelRule:
    """Which of its two leaves a two-coloured object is annotated as.

    The leaf that has fewest annotations so far, those of one-coloured objects at first, takes all objects
    that it shares with one other leaf, the one with most annotations; and so on. A rare leaf thereby keeps
    about its frequency, and none gets more annotations than it has objects.
    """

    def __init__(self, images: Sequence[PlannedImage], num_leaves: int) -> None:
        """Decides.

        Args:
            images: of the training split; the rule holds in every split.
            num_leaves: L.
        """
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
        """The leaf that an object with these true leaves is annotated as."""
        pair = tuple(sorted(leaves))
        # What the training split does not have is left to the frequencies.
        return self._chosen[pair] if pair in self._chosen else min(pair, key=self._order)

    def _order(self, leaf: int) -> tuple[int, int]:
        return self._counts[leaf], leaf


def annotate_lvis(
    records: Sequence[ImageRecord],
    split: str,
    rule: CoLabelRule,
    vocabulary: ShapesVocabulary,
    options: ShapesOptions,
) -> list[LvisImage]:
    """Decides what is annotated in the images of a split.

    What is left out by `not_exhaustive_rate` depends on the seed, the split and the place of the image only.

    Args:
        records: images of the split, all of them and in order.
        split: its name.
        rule: made of the training split.
        vocabulary: the classes.
        options: of the data set.
    """
    found = []
    for index, record in enumerate(records):
        annotations: list[tuple[int, VisibleRegion]] = []
        partial: set[int] = set()
        for planned, drawn in zip(record.planned.objects, record.drawn, strict=True):
            written = [label for label in planned.labels if label < vocabulary.num_leaves]
            leaves = [rule.leaf_of(planned.leaves)] if options.lvis_labels == "leaf" else written
            regions = drawn.members if planned.group else (drawn.region,)
            annotations += [(leaf, region) for leaf in leaves for region in regions]
            partial |= set(planned.leaves) if planned.group else set(planned.leaves) - set(leaves)
        if options.not_exhaustive_rate:
            rng = np.random.default_rng([options.seed, SPLITS.index(split), 3, index])
            annotations, lost = _lose_some(annotations, options.not_exhaustive_rate, rng)
            partial |= lost
        absent = {leaf for label in record.planned.negatives for leaf in vocabulary.leaves_below(label)}
        partial &= {leaf for leaf, _ in annotations}
        found.append(LvisImage(record, tuple(annotations), tuple(sorted(partial)), tuple(sorted(absent))))
    return found


def count_lvis(images: Sequence[LvisImage], num_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, annotations) of each leaf, (L,) int64 each."""
    in_images, instances = np.zeros(num_leaves, dtype=np.int64), np.zeros(num_leaves, dtype=np.int64)
    for image in images:
        leaves = [leaf for leaf, _ in image.annotations]
        in_images[list(set(leaves))] += 1
        np.add.at(instances, leaves, 1)
    return in_images, instances


def warn_of_unseen(train_counts: tuple[np.ndarray, np.ndarray], vocabulary: ShapesVocabulary) -> None:
    """Warns of leaves without an annotation in the training split: all their objects are two-coloured."""
    names = [vocabulary.class_names[leaf] for leaf in np.flatnonzero(train_counts[0] == 0).tolist()]
    if names:
        logger.warning(
            "LVIS form: no training annotation of %s, whose objects are annotated as their second class; "
            "lower co_label_rate, or use more images",
            ", ".join(names),
        )


def write_lvis(
    path: Path,
    split: str,
    images: Sequence[LvisImage],
    vocabulary: ShapesVocabulary,
    train_counts: tuple[np.ndarray, np.ndarray],
    options: ShapesOptions,
) -> None:
    """Writes LVIS v1 JSON of a split; category id = leaf index + 1, image id = position + 1.

    Args:
        path: file to write.
        split: folder of the images, for `coco_url`, whose last two parts readers take for the file name.
        images: of the split.
        vocabulary: the classes.
        train_counts: (images, annotations) of each leaf in the training split, see `count_lvis`; they decide
            the frequency letters in every split, as in LVIS.
        options: of the data set.
    """
    entries, annotations = [], []
    for number, image in enumerate(images, start=1):
        entry = image_entry(number, image.record)
        entry["coco_url"] = f"images/{split}/{image.record.file_name}"
        entry["neg_category_ids"] = [leaf + 1 for leaf in image.absent]
        entry["not_exhaustive_category_ids"] = [leaf + 1 for leaf in image.not_exhaustive]
        entries.append(entry)
        for leaf, region in image.annotations:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": leaf + 1,
                    "segmentation": region.polygons,
                    **box_and_area(region),
                }
            )
    rare, common = options.lvis_thresholds
    info = {
        "description": "longtail_det2 shapes",
        "labels": options.lvis_labels,
        "frequency": f"of the training split: r up to {rare} images, c up to {common}, f more",
        "frequency_thresholds": [rare, common],
    }
    categories = _categories(vocabulary, train_counts, options.lvis_thresholds)
    write_json(path, {"info": info, "images": entries, "annotations": annotations, "categories": categories})


def _categories(
    vocabulary: ShapesVocabulary, train_counts: tuple[np.ndarray, np.ndarray], thresholds: tuple[int, int]
) -> list[dict[str, Any]]:
    """The leaves, with the fields of LVIS."""
    image_counts, instance_counts = (counts.tolist() for counts in train_counts)
    letters = frequency_groups(image_counts, thresholds)
    categories = []
    for leaf, name in enumerate(vocabulary.class_names[: vocabulary.num_leaves]):
        categories.append(
            {
                "id": leaf + 1,
                "name": name.replace(" ", "_"),
                "synset": name.replace(" ", "_") + ".n.01",
                "synonyms": [name],
                "def": f"a {name}",
                "frequency": letters[leaf],
                "image_count": image_counts[leaf],
                "instance_count": instance_counts[leaf],
            }
        )
    return categories


def _lose_some(
    annotations: Sequence[tuple[int, VisibleRegion]], rate: float, rng: np.random.Generator
) -> tuple[list[tuple[int, VisibleRegion]], set[int]]:
    """Leaves out some, but not all, annotations of some of the leaves that have several.

    Returns:
        The annotations that stay, and the leaves that lost some.
    """
    places: dict[int, list[int]] = {}
    for place, (leaf, _) in enumerate(annotations):
        places.setdefault(leaf, []).append(place)
    gone: set[int] = set()
    lost: set[int] = set()
    for leaf, own in sorted(places.items()):
        if len(own) > 1 and rng.random() < rate:
            number = int(rng.integers(1, len(own)))
            gone |= set(rng.choice(own, size=number, replace=False).tolist())
            lost.add(leaf)
    return [one for place, one in enumerate(annotations) if place not in gone], lost
