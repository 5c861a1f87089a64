"""Which validation pictures a report shows.

They are chosen by what they show (several labels a box, groups, rare classes found and missed, the best and
the worst ones), the same every time: nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou

from longtail_det2.data.store import AnnotationStore, ObjectFlag
from longtail_det2.evaluation.openimages_io import Detections

__all__ = ["Tally", "choose", "tally_image"]

_OVERLAP = 0.5


@dataclass(frozen=True)
class Tally:
    """How well the shown predictions of one image agree with its truth.

    Attributes:
        index: image in the store.
        labels: annotated (object, label) pairs.
        found: those for which a prediction of the class overlaps enough.
        wrong: predictions that say something untrue about all objects they overlap, or overlap none.
        found_classes, missed_classes: the classes of the pairs.
        most_labels: labels of the object that has most.
        groups: group-of boxes.
    """

    index: int
    labels: int
    found: int
    wrong: int
    found_classes: tuple[int, ...]
    missed_classes: tuple[int, ...]
    most_labels: int
    groups: int

    @property
    def quality(self) -> float:
        """2 x found / (labels + found + wrong), in [0, 1]: an F-measure."""
        return 2 * self.found / max(self.labels + self.found + self.wrong, 1)


def tally_image(store: AnnotationStore, index: int, predictions: Detections | None) -> Tally:
    """Compares the predictions of an image (already cut at a score) with its truth.

    A simpler rule than the metric's, because a reader judges a picture one box at a time: a label is found if
    some prediction of its class overlaps its box by 0.5 (for a group: lies in it by 0.5). A prediction is
    wrong if its class is neither label, ancestor nor descendant of a label of any object that it overlaps so.
    """
    first, last = store.object_offsets[index : index + 2].tolist()
    offsets = store.label_offsets[first : last + 1]
    owner = np.repeat(np.arange(last - first), np.diff(offsets))
    labels = store.labels[offsets[0] : offsets[-1]].astype(np.int64)
    group = (store.flags[first:last] & int(ObjectFlag.GROUP_OF)) != 0
    found = np.zeros(len(labels), dtype=bool)
    wrong = 0
    if predictions is not None and len(predictions):
        near = _overlaps(store.boxes[first:last], group, predictions.box)[owner] >= _OVERLAP
        found = (near & (predictions.cls[None] == labels[:, None])).any(axis=1)
        kin = store.hierarchy.encode([[label] for label in labels.tolist()]) != 0
        wrong = int((~(near & kin[:, predictions.cls]).any(axis=0)).sum())
    return Tally(
        index=index,
        labels=len(labels),
        found=int(found.sum()),
        wrong=wrong,
        found_classes=tuple(labels[found].tolist()),
        missed_classes=tuple(labels[~found].tolist()),
        most_labels=int(np.diff(offsets).max(initial=0)),
        groups=int(group.sum()),
    )


def _overlaps(truth: np.ndarray, group: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(objects, predictions): IoU, for groups the part of the prediction that lies inside."""
    ours = Boxes(torch.tensor(truth, dtype=torch.float32))
    theirs = Boxes(torch.tensor(boxes, dtype=torch.float32))
    inside = pairwise_ioa(ours, theirs).numpy()
    return np.where(group[:, None], inside, pairwise_iou(ours, theirs).numpy())


@dataclass(frozen=True)
class _Purpose:
    """Why pictures are shown: those with the largest key come first, those with None do not fit."""

    name: str
    key: Callable[[Tally], tuple[float, ...] | None]


def choose(
    tallies: Sequence[Tally], groups: Mapping[int, str], count: int, with_predictions: bool
) -> list[tuple[Tally, str]]:
    """Takes the best picture for each purpose in turn until there are `count`; no picture twice.

    Args:
        tallies: images to choose from; those without objects are passed over.
        groups: frequency group ("head", "medium", "tail") by class index.
        count: most pictures.
        with_predictions: False if there are none, so that nothing counts as missed.

    Returns:
        Pairs (tally, why it is shown), by purpose.
    """
    purposes = _purposes(groups, with_predictions)
    queues: list[list[Tally]] = []
    for purpose in purposes:
        ranked = [(purpose.key(one), one) for one in tallies if one.labels]
        fitting = [(key, one) for key, one in ranked if key is not None]
        fitting.sort(key=lambda pair: (*(-value for value in pair[0]), pair[1].index))
        queues.append([one for _, one in reversed(fitting)])
    chosen: dict[int, tuple[int, Tally]] = {}
    while len(chosen) < count and any(queues):
        for place, queue in enumerate(queues):
            while queue and queue[-1].index in chosen:
                queue.pop()
            if queue and len(chosen) < count:
                best = queue.pop()
                chosen[best.index] = (place, best)
    by_purpose = sorted(chosen.values(), key=lambda pair: pair[0])
    return [(one, purposes[place].name) for place, one in by_purpose]


def _purposes(groups: Mapping[int, str], with_predictions: bool) -> list[_Purpose]:
    def rare(classes: Sequence[int]) -> int:
        return sum(groups.get(label) == "tail" for label in classes)

    def if_any(number: int, *rest: float) -> tuple[float, ...] | None:
        return (number, *rest) if number else None

    several = _Purpose(
        "several labels on a box",
        lambda one: if_any(max(one.most_labels - 1, 0), one.quality, one.labels),
    )
    group = _Purpose("a group of objects", lambda one: if_any(one.groups, one.quality, one.labels))
    if not with_predictions:
        return [
            several,
            _Purpose("rare classes", lambda one: if_any(rare(one.missed_classes), one.labels)),
            group,
            _Purpose("many objects", lambda one: (one.labels,)),
        ]
    return [
        several,
        _Purpose("rare classes found", lambda one: if_any(rare(one.found_classes), one.quality)),
        _Purpose("rare classes missed", lambda one: if_any(rare(one.missed_classes), one.quality)),
        group,
        _Purpose("among the best", lambda one: (one.quality, one.labels)),
        _Purpose("among the worst", lambda one: (-one.quality, one.labels)),
    ]
