import pytest
import torch
from model_factories import make_loss, multi_label_targets, random_logits, single_label_targets, some_rates

from longtail_det2.layers import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from longtail_det2.utils.errors import ConfigError

NAME = "ConcurrentSoftmaxLoss"
FORMS = ("concurrent", "softmax")


@pytest.mark.parametrize("train", FORMS)
@pytest.mark.parametrize("test", FORMS)
def test_the_functions_of_rows(train, test):
    targets, logits, rates = multi_label_targets(), random_logits(6), some_rates()
    loss = make_loss(NAME, train=train, test=test)
    losses = {
        "concurrent": concurrent_softmax_loss(logits, targets.labels, rates),
        "softmax": multi_label_softmax_loss(logits, targets.labels),
    }
    scores = {"concurrent": concurrent_softmax_scores(logits, rates), "softmax": logits.softmax(dim=1)}
    torch.testing.assert_close(loss.unreduced(logits, targets), {"loss_cls": losses[train]})
    torch.testing.assert_close(loss.scores(logits), scores[test])


@pytest.mark.parametrize("train", FORMS)
def test_single_labels_without_rates_are_the_softmax_loss(train):
    targets, logits, other = single_label_targets(), random_logits(6), make_loss("SoftmaxCrossEntropyLoss")
    loss = make_loss(NAME, rates=torch.zeros(5, 5), train=train)
    torch.testing.assert_close(loss.unreduced(logits, targets), other.unreduced(logits, targets))
    torch.testing.assert_close(loss.scores(logits), other.scores(logits))
    assert torch.equal(loss.bias(0.1), other.bias(0.1))


@pytest.mark.parametrize(("train", "test"), [("concurrent", "softmax"), ("softmax", "concurrent")])
def test_training_without_rates_is_an_error(train, test):
    """Also where only the scores use them: the checkpoint would have none."""
    loss = make_loss(NAME, rates=None, train=train, test=test)
    with pytest.raises(ConfigError, match=r"rates.*DATASETS.STATISTICS"):
        loss.unreduced(random_logits(6), multi_label_targets())
    loss = make_loss(NAME, rates=None, train="softmax", test="softmax")
    assert loss.unreduced(random_logits(6), multi_label_targets())["loss_cls"].sum() > 0
