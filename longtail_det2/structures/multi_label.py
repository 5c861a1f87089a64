"""Multi-label classification targets of proposals and anchors.

Shapes: R rows (proposals or anchors) of a batch, P of them positive, K foreground classes; background
is class index K and the last column, Detectron2's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
"""Values of a label matrix: the row has the label, does not have it, or it is unknown (no loss)."""

BACKGROUND, IGNORE = -1, -2
"""Matches of an anchor instead of a gt index: background, or overlap in between (no loss)."""


class MultiLabelTargets:
    """Classification targets of R rows.

    Attributes:
        classes: (R,) int64 in [-1, K], the most specific label of each row; K is background, -1 no loss.
        labels: (R, K + 1) int8 in {1 positive, 0 negative, -1 ignored}. A background row has only its last
            column positive and nothing ignored; a foreground row has 0 in the last column.
    """

    def __init__(self, classes: Tensor, labels: Tensor) -> None:
        """Hold targets, see the class; raises ValueError if the shapes do not match."""
        if labels.ndim != 2 or classes.shape != labels.shape[:1]:
            shapes = tuple(classes.shape), tuple(labels.shape)
            raise ValueError(f"targets need classes (R,) and labels (R, K + 1), got the shapes {shapes}")
        self.classes, self.labels = classes, labels

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return self.labels.shape[1] - 1

    @property
    def known(self) -> Tensor:
        """(R,) bool, rows that are not ignored as a whole."""
        return self.classes >= 0

    @property
    def foreground(self) -> Tensor:
        """(R,) bool, rows that are neither ignored nor background."""
        return self.known & (self.classes < self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> MultiLabelTargets:
        """Return the same targets on another device."""
        return MultiLabelTargets(self.classes.to(device), self.labels.to(device))

    @staticmethod
    def from_classes(classes: Tensor, num_classes: int) -> MultiLabelTargets:
        """Make single-label targets as one-hot rows.

        Args:
            classes: (R,) integers in [0, K]. The range is not checked, to avoid a device synchronization.
            num_classes: K.
        """
        labels = torch.zeros(len(classes), num_classes + 1, dtype=torch.int8, device=classes.device)
        if len(classes):
            labels.scatter_(1, classes.long()[:, None], 1)
        return MultiLabelTargets(classes.long(), labels)

    @staticmethod
    def from_images(labels: Tensor) -> MultiLabelTargets:
        """Make the targets of whole images.

        The labels of an image have no order: its class is the first of them. An image without labels is
        background, or ignored where something about it is unknown.

        Args:
            labels: (R, K) int8 in {1, 0, -1}.
        """
        positive, known = labels == POSITIVE, (labels != IGNORED).all(dim=1)
        empty = ~positive.any(dim=1)
        background = empty & known
        classes = torch.where(background, labels.shape[1], positive.int().argmax(dim=1))
        classes = torch.where(empty & ~known, -1, classes)
        return MultiLabelTargets(classes, torch.cat([labels, background[:, None].to(labels.dtype)], dim=1))

    @staticmethod
    def from_proposals(proposals: Sequence[Instances], num_classes: int) -> MultiLabelTargets:
        """Concatenate the targets of sampled proposals.

        Detectron2 copies the `gt_*` fields of the matched object to every proposal, also to background ones:
        rows with `gt_classes == K` therefore get the background row here.

        Args:
            proposals: per image, may be empty, with `gt_classes` (n,) in [0, K] and usually `gt_labels`
                (n, K) int8; without these, as in images without objects, a row is one-hot.
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


@dataclass(frozen=True)
class DenseTargets:
    """Classification targets of R anchors, almost all of them background.

    The label matrix of 200,000 anchors and 500 classes would take 100 MB; P is a few hundred.

    Attributes:
        classes: (R,) int64 in [-1, K], the most specific label; K is background, -1 is ignored: no loss.
        rows: (P,) int64, ascending indices of the positive anchors.
        positives: targets of the P positive anchors.
    """

    classes: Tensor
    rows: Tensor
    positives: MultiLabelTargets

    @property
    def background(self) -> Tensor:
        """(R,) bool, anchors that are background."""
        return self.classes == self.positives.num_classes

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def from_matches(
        matches: Sequence[Tensor], objects: Sequence[Instances], num_classes: int
    ) -> tuple[DenseTargets, Tensor]:
        """Concatenate the matches of the anchors of several images.

        Args:
            matches: per image (Ri,) int64, the index of the object that each anchor matched, `BACKGROUND` or
                `IGNORE`.
            objects: per image, with ``gt_boxes``, ``gt_classes`` (n,) and usually ``gt_labels`` (n, K);
                without ``gt_labels`` an object has one label.
            num_classes: K.

        Returns:
            The targets, and (P, 4) the gt boxes that the positive anchors matched.

        Raises:
            ValueError: `gt_labels` has another number of classes than the model.
        """
        classes, rows, labels, boxes, before = [], [], [], [], 0
        for matched, image in zip(matches, objects, strict=True):
            truth = MultiLabelTargets.from_proposals([image], num_classes)
            (positive,) = (matched >= 0).nonzero(as_tuple=True)
            chosen = matched[positive]
            of_image = torch.where(matched == IGNORE, -1, num_classes)
            of_image[positive] = truth.classes[chosen]
            classes.append(of_image)
            rows.append(positive + before)
            labels.append(truth.labels[chosen])
            boxes.append(image.gt_boxes.tensor[chosen])
            before += len(matched)
        every, indices = torch.cat(classes), torch.cat(rows)
        positives = MultiLabelTargets(every[indices], torch.cat(labels))
        return DenseTargets(every, indices, positives), torch.cat(boxes)


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
