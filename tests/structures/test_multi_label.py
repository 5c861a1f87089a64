import pytest
import torch
from detectron2.structures import Boxes, Instances

from longtail_det2.structures.multi_label import BACKGROUND, IGNORE, DenseTargets, MultiLabelTargets


def proposals(classes, labels=None, width=5):
    width = len(labels[0]) if labels else width
    image = Instances((10, 10))
    image.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image.gt_boxes = Boxes(torch.arange(4.0).repeat(len(classes), 1) + torch.arange(len(classes))[:, None])
    if labels is not None:
        image.gt_labels = torch.tensor(labels, dtype=torch.int8).reshape(len(classes), width)
    return image


PROPOSALS = [  # images, K, wanted labels
    # The labels of background are copies.
    ([proposals([1, 3], [[1, 1, -1], [1, 1, -1]])], 3, [[1, 1, -1, 0], [0, 0, 0, 1]]),
    ([proposals([0], [[1, -1]]), proposals([2, 2])], 2, [[1, -1, 0], [0, 0, 1], [0, 0, 1]]),
    ([proposals([1, 0])], 2, [[0, 1, 0], [1, 0, 0]]),
    ([proposals([0, 1], [[1], [1]])], 1, [[1, 0], [0, 1]]),
    ([], 5, []),
    ([proposals([])], 5, []),
    ([proposals([], []), proposals([])], 5, []),
]


@pytest.mark.parametrize(("images", "num_classes", "labels"), PROPOSALS)
def test_proposals_with_and_without_label_matrices(images, num_classes, labels):
    targets = MultiLabelTargets.from_proposals(images, num_classes).to("cpu")
    assert targets.labels.tolist() == labels and targets.labels.shape[1] == num_classes + 1
    assert targets.classes.tolist() == [label for one in images for label in one.gt_classes.tolist()]


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="model has 4 classes"):
        MultiLabelTargets.from_proposals([proposals([0], [[1, 0, 0]])], 4)
    with pytest.raises(ValueError, match="classes"):
        MultiLabelTargets(torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match="NUM_CLASSES disagree"):
        DenseTargets.from_matches([torch.tensor([0])], [proposals([0], [[1, 0, 0]])], 5)


def test_targets_of_matches():
    """Two images with three classes: background, ignored, two objects; and nothing at all."""
    images = [proposals([0, 2], [[1, 1, 0], [0, -1, 1]]), proposals([], [], width=3)]
    matches = [torch.tensor([BACKGROUND, 1, IGNORE, 0, 1]), torch.full((2,), BACKGROUND)]
    targets, boxes = DenseTargets.from_matches(matches, images, 3)
    assert targets.classes.tolist() == [3, 2, -1, 0, 2, 3, 3]
    assert targets.background.tolist() == [True, False, False, False, False, True, True]
    assert targets.rows.tolist() == [1, 3, 4] and len(targets) == 7
    assert targets.positives.classes.tolist() == [2, 0, 2]
    assert targets.positives.labels.tolist() == [[0, -1, 1, 0], [1, 1, 0, 0], [0, -1, 1, 0]]
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4]]
