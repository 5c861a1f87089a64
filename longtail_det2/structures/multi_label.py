"""Multi-label classification targets of regions.

Shapes: R regions of a batch, K foreground classes; background is class index K and the last column, which is
Detectron2's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
"""Values of a truth matrix: the region has the label, has it not, or it is unknown (no loss)."""


@dataclass(frozen=True)
class MultiLabelTargets:
    """What a classifier should say about R regions.

    Attributes:
        classes: (R,) int64 in [0, K], the most specific label of each region; K is background.
        labels: (R, K + 1) int8 in {1 positive, 0 negative, -1 ignored}. A background region has only its last
            column positive and no ignored one; a foreground region has 0 in the last column.
    """

    classes: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.classes.ndim != 1 or self.labels.ndim != 2 or len(self.classes) != len(self.labels):
            raise ValueError(
                f"targets need classes (R,) and labels (R, K + 1), got {tuple(self.classes.shape)} and "
                f"{tuple(self.labels.shape)}"
            )

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return self.labels.shape[1] - 1

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> MultiLabelTargets:
        """The same targets on another device."""
        return MultiLabelTargets(self.classes.to(device), self.labels.to(device))

    @staticmethod
    def from_classes(classes: Tensor, num_classes: int) -> MultiLabelTargets:
        """Single-label targets as one-hot rows.

        Args:
            classes: (R,) integers in [0, K]. The range is not checked, to avoid a device synchronisation.
            num_classes: K.
        """
        labels = torch.zeros(len(classes), num_classes + 1, dtype=torch.int8, device=classes.device)
        if len(classes):
            labels.scatter_(1, classes.long()[:, None], 1)
        return MultiLabelTargets(classes.long(), labels)

    @staticmethod
    def from_proposals(proposals: Sequence[Instances], num_classes: int) -> MultiLabelTargets:
        """Joins the targets of the proposals that a ROI head sampled.

        Each element has `gt_classes` (n,) in [0, K] and usually `gt_labels` (n, K) int8. Detectron2 copies
        every `gt_*` field of the matched object to a proposal, also to background proposals: the rows with
        `gt_classes == K` therefore get the background row here. Without `gt_labels` a row is one-hot. Images
        without objects have no `gt_labels` in their proposals; all their rows are background anyway.

        Args:
            proposals: one per image; may be empty, and so may any element.
            num_classes: K.

        Raises:
            ValueError: `gt_labels` has another number of classes than the model.
        """
        if not proposals:
            return MultiLabelTargets.from_classes(torch.zeros(0, dtype=torch.int64), num_classes)
        parts = [_targets_of_image(image, num_classes) for image in proposals]
        return MultiLabelTargets(
            torch.cat([part.classes for part in parts]), torch.cat([part.labels for part in parts])
        )


def _targets_of_image(image: Instances, num_classes: int) -> MultiLabelTargets:
    one_hot = MultiLabelTargets.from_classes(image.gt_classes, num_classes)
    if not image.has("gt_labels"):
        return one_hot
    truth = image.gt_labels
    if truth.ndim != 2 or truth.shape[1] != num_classes:
        raise ValueError(
            f"gt_labels has shape {tuple(truth.shape)}, but the model has {num_classes} classes: the data "
            "set and MODEL.ROI_HEADS.NUM_CLASSES disagree"
        )
    background = (one_hot.classes == num_classes)[:, None]
    labels = torch.cat([truth.to(torch.int8), one_hot.labels[:, -1:]], dim=1)
    return MultiLabelTargets(one_hot.classes, torch.where(background, one_hot.labels, labels))
