import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from longtail_det2.config import get_cfg
from longtail_det2.engine.training_step import NonFiniteLossError, ResumableLoader, make_training_step
from longtail_det2.layers import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from longtail_det2.modeling.losses import (
    ConcurrentSoftmaxLoss,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
    reduce_losses,
)
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

FORMS = ("concurrent", "softmax")


def some_rates(seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(size, size, generator=generator)
    rates[torch.rand(rates.shape, generator=generator) < 0.3] = 1.0
    return rates.fill_diagonal_(0.0)


def make_loss(**options):
    return ConcurrentSoftmaxLoss(num_classes=5, **{"rates": some_rates(), **options})


def multi_label_targets(rows=12):
    """Background, ignored entries, several labels per row, and a row that is left out."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, 6, (rows,), generator=generator)
    labels = torch.randint(-1, 2, (rows, 6), generator=generator).to(torch.int8)
    labels[:, -1] = 0
    labels[torch.arange(rows), classes] = 1
    labels[classes == 5] = torch.tensor([0, 0, 0, 0, 0, 1], dtype=torch.int8)
    classes[2], labels[2] = -1, -1
    return MultiLabelTargets(classes, labels)


def random_logits(rows=12):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(7)).requires_grad_()


def test_the_functions_of_rows():
    targets, logits = multi_label_targets(), random_logits()
    found = make_loss().unreduced(logits, targets)
    assert set(found) == {"loss_cls"}
    torch.testing.assert_close(
        found["loss_cls"], concurrent_softmax_loss(logits, targets.labels, some_rates())
    )
    found = make_loss(train="softmax").unreduced(logits, targets)
    torch.testing.assert_close(found["loss_cls"], multi_label_softmax_loss(logits, targets.labels))
    torch.testing.assert_close(make_loss().scores(logits), concurrent_softmax_scores(logits, some_rates()))


@pytest.mark.parametrize("train", FORMS)
def test_single_labels_without_rates_are_the_softmax_loss(train):
    targets = MultiLabelTargets.from_classes(torch.arange(12) % 6, 5)
    logits, other = random_logits(), SoftmaxCrossEntropyLoss(num_classes=5)
    loss = make_loss(rates=torch.zeros(5, 5), train=train)
    torch.testing.assert_close(loss.unreduced(logits, targets), other.unreduced(logits, targets))
    torch.testing.assert_close(loss.scores(logits), other.scores(logits))
    assert torch.equal(loss.bias(0.1), other.bias(0.1))


def test_forms_are_chosen_separately():
    targets, logits = multi_label_targets(), random_logits()
    losses, scores = set(), set()
    for train in FORMS:
        for test in FORMS:
            loss = make_loss(train=train, test=test)
            losses.add((train, float(loss.unreduced(logits, targets)["loss_cls"].detach().sum())))
            scores.add((test, float(loss.scores(logits).detach().sum())))
    assert len(losses) == len(scores) == 2


@pytest.mark.parametrize(("train", "test"), [("concurrent", "softmax"), ("softmax", "concurrent")])
def test_training_without_rates_is_an_error(train, test):
    """Also where only the scores use them: the checkpoint would have none."""
    loss = make_loss(rates=None, train=train, test=test)
    with pytest.raises(ConfigError, match=r"no rates.*DATASETS.STATISTICS.*load weights"):
        loss.unreduced(random_logits(), multi_label_targets())
    loss = make_loss(rates=None, train="softmax", test="softmax")
    assert loss.unreduced(random_logits(), multi_label_targets())["loss_cls"].sum() > 0


def test_directions():
    """The config says how rates are read; a checkpoint keeps P(j | i) in any case."""
    targets, logits, rates = multi_label_targets(), random_logits(), some_rates()
    directed = {"given_row": rates, "given_column": rates.T, "maximum": torch.maximum(rates, rates.T)}
    for direction, wanted in directed.items():
        loss = make_loss(rates=None, direction=direction)
        loss.load_state_dict(make_loss(direction="given_column").state_dict())
        assert torch.equal(loss.rates, rates)
        torch.testing.assert_close(loss.scores(logits), concurrent_softmax_scores(logits, wanted))
        found = loss.unreduced(logits, targets)["loss_cls"]
        torch.testing.assert_close(found, concurrent_softmax_loss(logits, targets.labels, wanted))


@pytest.mark.parametrize("key", ["train", "test", "direction"])
def test_unknown_choices(key):
    with pytest.raises(ConfigError, match=rf"{key.upper()}.* is 'sigmoid'; it must be one of "):
        make_loss(**{key: "sigmoid"})


def test_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "ConcurrentSoftmaxLoss"
    keys = cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX
    assert (keys.TRAIN, keys.TEST, keys.DIRECTION) == ("concurrent", "concurrent", "given_row")
    keys.TRAIN, keys.TEST = "softmax", "softmax"
    loss = build_classification_loss(cfg, 5)
    assert (loss.train_form, loss.test_form) == ("softmax", "softmax")


class OneLoss(nn.Module):
    """A model that is nothing but a classifier and its loss; NaN in one logit of a batch that says so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.loss = make_loss()

    def forward(self, batch):
        logits = self.layer(torch.ones(12, 4)).index_put(
            (torch.tensor([2]), torch.tensor([1])), torch.tensor(batch[0]["value"])
        )
        return reduce_losses(self.loss.unreduced(logits, multi_label_targets()), 11)


def test_nan_logits_stop_training_with_iteration_and_loss():
    """Even in a row that is left out of the loss."""
    values = [0.0, 1.0, float("nan"), 0.0]
    batches = [[{"image_id": f"picture {place}", "value": value}] for place, value in enumerate(values)]
    model = OneLoss()
    step = make_training_step(
        model,
        ResumableLoader(lambda start, seed: iter(batches), 1, 0),
        torch.optim.SGD(model.parameters(), lr=0.1),
        False,
    )
    message = r"stopped in iteration 2: loss_cls = nan in the batch of the images picture 2"
    with EventStorage() as storage, pytest.raises(NonFiniteLossError, match=message):
        for iteration in range(4):
            storage.iter = iteration
            step.iter = iteration
            step.run_step()
    assert all(value.isfinite().all() for value in model.state_dict().values())
