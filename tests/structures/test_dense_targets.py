import pytest
import torch
from detectron2.structures import Boxes, Instances

from longtail_det2.structures.multi_label import BACKGROUND, IGNORE, DenseTargets


def image_of(labels, classes):
    image = Instances((64, 64))
    count = len(classes)
    image.gt_boxes = Boxes(torch.arange(4.0).repeat(count, 1) + torch.arange(count)[:, None])
    image.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image.gt_labels = torch.tensor(labels, dtype=torch.int8).reshape(count, 3)
    return image


def test_targets_of_matches():
    """Two images with three classes: background, ignored, two objects; and nothing at all."""
    images = [image_of([[1, 1, 0], [0, -1, 1]], [0, 2]), image_of([], [])]
    matches = [torch.tensor([BACKGROUND, 1, IGNORE, 0, 1]), torch.full((2,), BACKGROUND)]
    targets, boxes = DenseTargets.from_matches(matches, images, 3)
    assert targets.classes.tolist() == [3, 2, -1, 0, 2, 3, 3]
    assert targets.background.tolist() == [True, False, False, False, False, True, True]
    assert targets.rows.tolist() == [1, 3, 4] and len(targets) == 7
    assert targets.positives.classes.tolist() == [2, 0, 2]
    assert targets.positives.labels.tolist() == [[0, -1, 1, 0], [1, 1, 0, 0], [0, -1, 1, 0]]
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4]]


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES disagree"):
        DenseTargets.from_matches([torch.tensor([0])], [image_of([[1, 0, 0]], [0])], 5)
