import pytest
import torch
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from longtail_det2.modeling.losses import (
    ClassificationLoss,
    SigmoidBCELoss,
    SigmoidFocalLoss,
    SoftmaxCrossEntropyLoss,
    check_serves_dense_heads,
)
from longtail_det2.structures.dense_targets import MATCHED_NOTHING, MATCHED_UNCLEAR, DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

LOSSES = [
    SigmoidFocalLoss(),
    SigmoidFocalLoss(alpha=-1, gamma=0.5),
    SigmoidBCELoss(),
    SoftmaxCrossEntropyLoss(),
]
NORMALIZER = torch.tensor(3.0, dtype=torch.float64)


def image_of(labels, classes):
    image = Instances((64, 64))
    count = len(classes)
    image.gt_boxes = Boxes(torch.arange(4.0).repeat(count, 1) + torch.arange(count)[:, None])
    image.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if labels is not None:
        image.gt_labels = torch.tensor(labels, dtype=torch.int8).reshape(count, 3)
    return image


@pytest.fixture
def matched():
    """Targets of two images with three classes: background, ignored, two objects; and nothing at all."""
    images = [image_of([[1, 1, 0], [0, -1, 1]], [0, 2]), image_of([], [])]
    matches = [torch.tensor([MATCHED_NOTHING, 1, MATCHED_UNCLEAR, 0, 1]), torch.full((2,), MATCHED_NOTHING)]
    return DenseTargets.from_matches(matches, images, 3)


def test_targets_of_matches(matched):
    targets, boxes = matched
    assert targets.classes.tolist() == [3, 2, -1, 0, 2, 3, 3]
    assert targets.rows.tolist() == [1, 3, 4] and len(targets) == 7 and targets.num_classes == 3
    assert targets.labels.tolist() == [[0, -1, 1], [1, 1, 0], [0, -1, 1]]
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [1, 2, 3, 4]]
    full = targets.to_multi_label()
    assert full.labels.tolist() == [
        *([0, 0, 0, 1], [0, -1, 1, 0], [-1, -1, -1, -1], [1, 1, 0, 0]),
        *([0, -1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]),
    ]


def test_targets_without_labels_field_are_one_hot():
    targets, _ = DenseTargets.from_matches([torch.tensor([0, 1])], [image_of(None, [2, 0])], 3)
    assert targets.labels.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_targets_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES disagree"):
        DenseTargets.from_matches([torch.tensor([0])], [image_of([[1, 0, 0]], [0])], 5)
    with pytest.raises(ValueError, match="dense targets need"):
        DenseTargets(torch.zeros(3), torch.zeros(2), torch.zeros(1, 3))


def slow(loss, logits, targets):
    """Sum over all entries from the full truth matrix, divided by the normaliser."""
    full = targets.to_multi_label()
    if isinstance(loss, SoftmaxCrossEntropyLoss):
        kept = full.classes >= 0
        return F.cross_entropy(logits[kept], full.classes[kept], reduction="sum") / NORMALIZER
    truth = full.labels[:, :-1]
    alpha, gamma = getattr(loss, "alpha", -1), getattr(loss, "gamma", 0.0)
    entries = sigmoid_focal_loss(logits, (truth == 1).to(logits.dtype), alpha=alpha, gamma=gamma)
    return (entries * (truth >= 0)).sum() / NORMALIZER


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_dense_loss_is_the_sum_over_the_full_matrix(loss, matched):
    targets, _ = matched
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, loss.num_logits(3), dtype=torch.float64)).requires_grad_()
    found = loss.dense_loss(logits, targets, NORMALIZER)["loss_cls"]
    expected = slow(loss, logits, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # fvcore computes in float32
    one, other = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not one[2].any()  # ignored
    assert torch.autograd.gradcheck(lambda x: loss.dense_loss(x, targets, NORMALIZER)["loss_cls"], (logits,))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("count", [0, 4])
def test_dense_loss_without_positives_is_attached(loss, count):
    nothing = torch.full((count,), MATCHED_NOTHING)
    targets, boxes = DenseTargets.from_matches([nothing], [image_of([], [])], 3)
    logits = torch.zeros(count, loss.num_logits(3), requires_grad=True)
    value = loss.dense_loss(logits, targets, NORMALIZER)["loss_cls"]
    value.backward()
    assert boxes.shape == (0, 4) and logits.grad is not None
    assert (value > 0) == (count > 0)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_and_narrow_logits_stay_finite(loss, dtype, matched):
    targets, _ = matched
    for size in (1e4, -1e4):
        logits = torch.full((7, loss.num_logits(3)), size, dtype=dtype)
        logits[:, 0] *= -1
        logits.requires_grad_()
        value = loss.dense_loss(logits, targets, NORMALIZER)["loss_cls"]
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all() and value.dtype == torch.float64


def test_softmax_starts_with_background():
    loss = SoftmaxCrossEntropyLoss()
    scores = loss.activation(loss.dense_bias(501)[None])[0]
    torch.testing.assert_close(scores[-1], torch.tensor(0.99))
    torch.testing.assert_close(scores[:-1], torch.full((500,), 0.01 / 500))
    assert loss.initial_bias(501) is None


def test_focal_loss_of_sampled_regions():
    loss, logits = SigmoidFocalLoss(), torch.randn(4, 3)
    classes = torch.tensor([0, 3, 2, 3])
    found = loss(logits, MultiLabelTargets.from_classes(classes, 3))["loss_cls"]
    truth = F.one_hot(classes, 4)[:, :-1].float()
    expected = sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2, reduction="sum") / 2
    torch.testing.assert_close(found, expected)
    nothing = MultiLabelTargets.from_classes(torch.zeros(0, dtype=torch.int64), 3)
    assert loss(torch.zeros(0, 3), nothing)["loss_cls"] == 0


@pytest.mark.parametrize("bad", [{"alpha": 1.5}, {"gamma": -1.0}, {"prior_prob": 0.0}])
def test_bad_focal_settings(bad):
    with pytest.raises(ConfigError, match=r"alpha=1.5|gamma=-1.0|must lie between 0 and 1"):
        SigmoidFocalLoss(**bad)


class OnlySampled(ClassificationLoss):
    def num_logits(self, num_classes):
        return num_classes

    def activation(self, logits):
        return F.pad(logits.sigmoid(), (0, 1))

    def forward(self, logits, targets):
        return {"loss_cls": logits.sum()}


class ChangedForward(SigmoidBCELoss):
    def forward(self, logits, targets):
        return {"loss_cls": logits.sum()}


def test_losses_without_a_dense_form_are_refused(matched):
    for loss in (OnlySampled(), ChangedForward()):
        with pytest.raises(
            ConfigError, match=f"{type(loss).__name__} cannot serve a dense head.*SigmoidFocalLoss"
        ):
            check_serves_dense_heads(loss)
    with pytest.raises(ConfigError, match="cannot serve"):
        OnlySampled().dense_loss(torch.zeros(7, 3), matched[0], NORMALIZER)
    for loss in LOSSES:
        check_serves_dense_heads(loss)
