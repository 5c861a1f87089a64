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


def test_from_classes_is_one_hot():
    targets = MultiLabelTargets.from_classes(torch.tensor([2, 0, 3]), 3)
    assert targets.num_classes == 3 and len(targets) == 3
    assert targets.labels.dtype == torch.int8
    assert targets.labels.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_background_rows_lose_the_copied_labels():
    image = proposals([1, 3], [[1, 1, -1], [1, 1, -1]])
    targets = MultiLabelTargets.from_proposals([image], 3)
    assert targets.labels.tolist() == [[1, 1, -1, 0], [0, 0, 0, 1]]
    assert targets.classes.tolist() == [1, 3]


def test_images_with_and_without_labels_are_joined():
    with_labels = proposals([0], [[1, -1]])
    empty_image = proposals([2, 2])
    targets = MultiLabelTargets.from_proposals([with_labels, empty_image], 2)
    assert targets.labels.tolist() == [[1, -1, 0], [0, 0, 1], [0, 0, 1]]


def test_single_label_fallback_equals_one_hot():
    targets = MultiLabelTargets.from_proposals([proposals([1, 0])], 2)
    assert torch.equal(targets.labels, MultiLabelTargets.from_classes(torch.tensor([1, 0]), 2).labels)


@pytest.mark.parametrize("images", [[], [proposals([])], [proposals([], []), proposals([])]])
def test_empty(images):
    targets = MultiLabelTargets.from_proposals(images, 5)
    assert len(targets) == 0 and targets.labels.shape == (0, 6)


def test_one_class():
    targets = MultiLabelTargets.from_proposals([proposals([0, 1], [[1], [1]])], 1)
    assert targets.labels.tolist() == [[1, 0], [0, 1]]


def test_wrong_number_of_classes_is_named():
    with pytest.raises(ValueError, match="model has 4 classes"):
        MultiLabelTargets.from_proposals([proposals([0], [[1, 0, 0]])], 4)


def test_mismatching_shapes():
    with pytest.raises(ValueError, match="classes"):
        MultiLabelTargets(torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int8))


def test_to_keeps_values():
    targets = MultiLabelTargets.from_classes(torch.tensor([0]), 2).to("cpu")
    assert targets.labels.tolist() == [[1, 0, 0]]


def test_known_and_foreground():
    classes = torch.tensor([0, 3, -1])
    targets = MultiLabelTargets(classes, torch.zeros(3, 4, dtype=torch.int8))
    assert targets.known.tolist() == [True, True, False]
    assert targets.foreground.tolist() == [True, False, False]
