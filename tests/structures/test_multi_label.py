import pytest
import torch
from detectron2.structures import Boxes, Instances

from longtail_det2.structures import MultiLabelTargets


def proposals(classes, labels=None):
    image = Instances((10, 10))
    image.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image.gt_boxes = Boxes(torch.zeros(len(classes), 4))
    if labels is not None:
        image.gt_labels = torch.tensor(labels, dtype=torch.int8).reshape(
            len(classes), len(labels[0]) if labels else 5
        )
    return image


PROPOSALS = [  # images, K, wanted labels
    (
        [proposals([1, 3], [[1, 1, -1], [1, 1, -1]])],
        3,
        [[1, 1, -1, 0], [0, 0, 0, 1]],
    ),  # background's are copies
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
