"""Multi-label classification targets of anchors, of which almost all are background.

Shapes: R anchors of all images of a batch, P of them positive, K foreground classes. With 200,000 anchors and
500 classes a full truth matrix would take 100 MB, and more as soon as something is computed with it; the P
rows that say anything are a few hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from .multi_label import MultiLabelTargets

MATCHED_NOTHING, MATCHED_UNCLEAR = -1, -2
"""Instead of an object's index: the anchor is background; it overlaps an object neither enough nor little."""


@dataclass(frozen=True)
class DenseTargets:
    """What a dense head should say about R anchors.

    Attributes:
        classes: (R,) int64 in [-1, K], the most specific label; K is background, -1 is ignored: no loss.
        rows: (P,) int64, the places of the positive anchors, ascending.
        labels: (P, K) int8 in {1 positive, 0 negative, -1 ignored} of the positive anchors.
    """

    classes: Tensor
    rows: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.classes.ndim != 1 or self.labels.ndim != 2 or len(self.rows) != len(self.labels):
            raise ValueError(
                f"dense targets need classes (R,), rows (P,) and labels (P, K), got "
                f"{tuple(self.classes.shape)}, {tuple(self.rows.shape)} and {tuple(self.labels.shape)}"
            )

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return self.labels.shape[1]

    def __len__(self) -> int:
        return len(self.classes)

    def to_multi_label(self) -> MultiLabelTargets:
        """The same as a full matrix, R x (K + 1) bytes; all columns of an ignored anchor are -1."""
        background = torch.full_like(self.classes, self.num_classes)
        full = MultiLabelTargets.from_classes(background, self.num_classes).labels
        full[self.rows] = torch.nn.functional.pad(self.labels, (0, 1))
        full[self.classes < 0] = -1
        return MultiLabelTargets(self.classes, full)

    @staticmethod
    def from_matches(
        matches: Sequence[Tensor], objects: Sequence[Instances], num_classes: int
    ) -> tuple[DenseTargets, Tensor]:
        """Joins what the anchors of several images matched.

        Args:
            matches: per image (Ri,) int64, the index of the object that each anchor matched,
                `MATCHED_NOTHING` or `MATCHED_UNCLEAR`.
            objects: per image, with ``gt_boxes``, ``gt_classes`` (n,) and usually ``gt_labels`` (n, K);
                without the last an object has one label.
            num_classes: K.

        Returns:
            The targets, and (P, 4) the boxes of the objects that the positive anchors matched.

        Raises:
            ValueError: `gt_labels` has another number of classes than the model.
        """
        classes, rows, labels, boxes, before = [], [], [], [], 0
        for matched, image in zip(matches, objects, strict=True):
            truth = MultiLabelTargets.from_proposals([image], num_classes)
            positive = (matched >= 0).nonzero()[:, 0]
            chosen = matched[positive]
            of_image = torch.where(matched == MATCHED_UNCLEAR, -1, num_classes)
            of_image[positive] = truth.classes[chosen]
            classes.append(of_image)
            rows.append(positive + before)
            labels.append(truth.labels[chosen, :num_classes])
            boxes.append(image.gt_boxes.tensor[chosen])
            before += len(matched)
        return DenseTargets(torch.cat(classes), torch.cat(rows), torch.cat(labels)), torch.cat(boxes)
