import copy
import logging

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from longtail_det2.config import get_cfg
from longtail_det2.data.concurrent_rates import DIRECTIONS, ConcurrentRates
from longtail_det2.engine.training_step import NonFiniteLossError, ResumableLoader, make_training_step
from longtail_det2.layers import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)
from longtail_det2.modeling.losses import (
    ConcurrentSoftmaxLoss,
    RatesOfRun,
    SoftmaxCrossEntropyLoss,
    build_classification_loss,
    check_serves_dense_heads,
)
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError, DataError

IDS = ("/m/a", "/m/b", "/m/c", "/m/d", "/m/e")
FORMS = ("concurrent", "softmax")
KEY = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX"


def some_rates(seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(size, size, generator=generator)
    rates[torch.rand(rates.shape, generator=generator) < 0.3] = 1.0
    return rates.fill_diagonal_(0.0)


def make_loss(**options):
    return ConcurrentSoftmaxLoss(num_classes=5, **{"rates": some_rates(), **options})


def multi_label_targets(rows=12):
    """Background, ignored entries, several labels a row, and a region that is left out."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(0, 6, (rows,), generator=generator)
    labels = torch.randint(-1, 2, (rows, 6), generator=generator).to(torch.int8)
    labels[:, -1] = 0
    labels[torch.arange(rows), classes] = 1
    labels[classes == 5] = torch.tensor([0, 0, 0, 0, 0, 1], dtype=torch.int8)
    classes[2], labels[2] = -1, -1
    return MultiLabelTargets(classes, labels)


def random_logits(rows=12, dtype=torch.float32, scale=1.0):
    logits = scale * torch.randn(rows, 6, generator=torch.Generator().manual_seed(7))
    return logits.to(dtype).requires_grad_()


def test_the_mean_over_regions_of_the_functions():
    targets, logits = multi_label_targets(), random_logits()
    found = make_loss()(logits, targets)
    assert set(found) == {"loss_cls"}
    wanted = concurrent_softmax_loss(logits, targets.labels, some_rates()).sum() / 11
    torch.testing.assert_close(found["loss_cls"], wanted)
    found = make_loss(train="softmax")(logits, targets)
    wanted = multi_label_softmax_loss(logits, targets.labels).sum() / 11
    torch.testing.assert_close(found["loss_cls"], wanted)
    torch.testing.assert_close(
        make_loss().activation(logits), concurrent_softmax_scores(logits, some_rates())
    )


@pytest.mark.parametrize("train", ["concurrent", "softmax"])
def test_single_labels_without_rates_are_the_softmax_loss(train):
    targets = MultiLabelTargets.from_classes(torch.arange(12) % 6, 5)
    logits, other = random_logits(), SoftmaxCrossEntropyLoss()
    loss = make_loss(rates=np.zeros((5, 5)), train=train)
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], other(logits, targets)["loss_cls"])
    torch.testing.assert_close(loss.activation(logits), other.activation(logits))
    assert loss.num_logits(5) == other.num_logits(5) == 6 and loss.initial_bias(6) is None


def test_forms_are_chosen_one_by_one():
    targets, logits = multi_label_targets(), random_logits()
    both = [(make_loss(train=train, test=test), train, test) for train in FORMS for test in FORMS]
    for loss, train, test in both:
        same = make_loss(train=train, test=train), make_loss(train=test, test=test)
        assert torch.equal(loss(logits, targets)["loss_cls"], same[0](logits, targets)["loss_cls"])
        assert torch.equal(loss.activation(logits), same[1].activation(logits))
    losses, scores = (
        {float(loss(logits, targets)["loss_cls"].detach()) for loss, *_ in both},
        {float(loss.activation(logits).detach().sum()) for loss, *_ in both},
    )
    assert len(losses) == len(scores) == 2


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_direction(direction):
    """The config says how rates are read; what a checkpoint keeps is P(j | i) in any case."""
    targets, logits, rates = (
        multi_label_targets(),
        random_logits(),
        ConcurrentRates(some_rates().numpy(), IDS),
    )
    loss = make_loss(rates=rates, direction=direction)
    assert torch.equal(loss.rates, some_rates())
    read = torch.from_numpy(rates.read(direction))
    other = make_loss(rates=read)
    assert torch.equal(loss(logits, targets)["loss_cls"], other(logits, targets)["loss_cls"])
    assert torch.equal(loss.activation(logits), other.activation(logits))
    assert (direction == "given_row") == torch.equal(read, loss.rates)


@pytest.mark.parametrize("train", FORMS)
def test_gradients(train):
    targets, loss = multi_label_targets(), make_loss(train=train).double()
    logits = random_logits(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets)["loss_cls"], logits)


@pytest.mark.parametrize("train", FORMS)
def test_no_regions_and_only_background(train):
    loss, layer = make_loss(train=train), nn.Linear(3, 6)
    found = loss(
        layer(torch.zeros(0, 3)), MultiLabelTargets.from_classes(torch.zeros(0, dtype=torch.int64), 5)
    )
    found["loss_cls"].backward()
    assert found["loss_cls"] == 0 and not layer.weight.grad.any()
    assert loss.activation(torch.zeros(0, 6)).shape == (0, 6)
    logits, background = random_logits(), torch.full((12,), 5)
    found = loss(logits, MultiLabelTargets.from_classes(background, 5))
    assert set(found) == {"loss_cls"}
    torch.testing.assert_close(found["loss_cls"], F.cross_entropy(logits, background))


@pytest.mark.parametrize("train", FORMS)
def test_everything_ignored_costs_nothing(train):
    logits = random_logits()
    nothing = MultiLabelTargets(torch.full((12,), -1), torch.full((12, 6), -1, dtype=torch.int8))
    found = make_loss(train=train)(logits, nothing)["loss_cls"]
    found.backward()
    assert found == 0 and not logits.grad.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite(form, scale):
    targets, loss, logits = (
        multi_label_targets(),
        make_loss(train=form, test=form),
        random_logits(scale=scale),
    )
    found = loss(logits, targets)["loss_cls"]
    found.backward()
    assert found.isfinite() and logits.grad.isfinite().all() and loss.activation(logits).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(form, dtype):
    targets, loss, logits = (
        multi_label_targets(),
        make_loss(train=form, test=form),
        random_logits(dtype=dtype),
    )
    wanted = loss(logits.float(), targets)["loss_cls"], loss.activation(logits.float())
    found = loss(logits, targets)["loss_cls"], loss.activation(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, targets)["loss_cls"], loss.activation(logits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(inside, wanted, rtol=0, atol=0)
    found[0].backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


def test_dense_form_is_the_sum_over_anchors():
    """As of the full matrix of labels, in which an ignored anchor has no positive."""
    labels = torch.tensor([[1, 0, -1, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.int8)
    targets = DenseTargets(torch.tensor([5, 0, -1, 2, 5, 5]), torch.tensor([1, 3]), labels)
    logits = random_logits(6)
    for form, function in (
        ("concurrent", lambda z, y: concurrent_softmax_loss(z, y, some_rates())),
        ("softmax", multi_label_softmax_loss),
    ):
        loss = make_loss(train=form)
        check_serves_dense_heads(loss)
        found = loss.dense_loss(logits, targets, torch.tensor(3.0))
        assert set(found) == {"loss_cls"}
        wanted = function(logits, targets.to_multi_label().labels).sum() / 3
        torch.testing.assert_close(found["loss_cls"], wanted)
    empty = DenseTargets(torch.full((6,), 5), torch.zeros(0, dtype=torch.int64), labels[:0])
    wanted = F.cross_entropy(logits, empty.classes, reduction="sum")
    torch.testing.assert_close(make_loss().dense_loss(logits, empty, torch.tensor(1.0))["loss_cls"], wanted)
    assert torch.equal(make_loss().dense_bias(6), SoftmaxCrossEntropyLoss().dense_bias(6))


def test_rates_are_kept_by_checkpoints():
    loss, other = make_loss(), make_loss(rates=None)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    targets, logits = multi_label_targets(), random_logits()
    assert torch.equal(other(logits, targets)["loss_cls"], loss(logits, targets)["loss_cls"])
    assert torch.equal(other.activation(logits), loss.activation(logits))


@pytest.mark.parametrize(("train", "test"), [("concurrent", "softmax"), ("softmax", "concurrent")])
def test_training_without_rates_is_an_error(train, test):
    """Also where only the scores use them: the checkpoint would have none."""
    loss = make_loss(rates=None, train=train, test=test)
    with pytest.raises(ConfigError, match=rf"no concurrent rates.*{KEY}.RATES_FILE.*load weights"):
        loss(random_logits(), multi_label_targets())
    loss = make_loss(rates=None, train="softmax", test="softmax")
    assert loss(random_logits(), multi_label_targets())["loss_cls"] > 0


def test_scores_without_rates_are_softmax_with_one_warning(caplog):
    loss, logits = make_loss(rates=RatesOfRun(("nowhere_train",))).eval(), random_logits()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(loss.activation(logits), logits.softmax(dim=1))
    assert len(caplog.records) == 1
    assert "plain softmax" in caplog.text and "nowhere_train" in caplog.text
    with pytest.raises(DataError, match="nowhere_train"):  # what was a warning is an error in training
        loss.train()(logits, multi_label_targets())
    named = make_loss(rates="nowhere.json").eval()
    with pytest.raises(DataError, match=r"nowhere\.json"):  # as is a file that was asked for
        named.activation(logits)


def test_weights_without_rates_do_not_take_them_away():
    loss, unset = make_loss(), make_loss(rates=None)
    loss.load_state_dict(unset.state_dict())
    assert torch.equal(loss.rates, some_rates()) and loss.rates_known
    loss.load_state_dict({}, strict=False)
    assert torch.equal(loss.rates, some_rates()) and loss.rates_known
    loss(random_logits(), multi_label_targets())


def test_loaded_rates_go_before_those_of_the_config_and_it_says_so(caplog):
    loss, logits, targets = make_loss(rates=some_rates(1)), random_logits(), multi_label_targets()
    loss.load_state_dict(make_loss().state_dict())
    assert torch.equal(loss.activation(logits), make_loss().activation(logits))
    assert not caplog.records
    for _ in range(2):
        assert torch.equal(loss(logits, targets)["loss_cls"], make_loss()(logits, targets)["loss_cls"])
    assert len(caplog.records) == 1 and "MODEL.RESET_WEIGHTS" in caplog.text


def test_rates_are_found_once_and_when_they_are_needed():
    calls = []

    def find():
        calls.append(1)
        return some_rates()

    loss = make_loss(rates=find)
    loss.load_state_dict(loss.state_dict())
    assert not calls
    for _ in range(2):
        loss(random_logits(), multi_label_targets())
        loss.activation(random_logits())
    assert len(calls) == 1 and torch.equal(loss.rates, some_rates())


def test_a_file_of_rates(tmp_path, registered):
    path = tmp_path / "rates.json"
    ConcurrentRates(some_rates().numpy(), IDS).save(path)
    for rates in (str(path), path, RatesOfRun(path=str(path)), RatesOfRun(registered(IDS), str(path))):
        loss = make_loss(rates=rates)
        loss(random_logits(), multi_label_targets())
        torch.testing.assert_close(loss.rates, some_rates())
    other = registered(("/m/a", "/m/b", "/m/x", "/m/d", "/m/e"))
    with pytest.raises(DataError, match=r"class 2 is '/m/c'.*'/m/x'"):
        make_loss(rates=RatesOfRun(other, str(path)))(random_logits(), multi_label_targets())


@pytest.fixture
def registered():
    """Function: class ids -> the name of a data set that has them."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names = []

    def register(class_ids):
        names.append(f"concurrent_softmax_{len(names)}")
        DatasetCatalog.register(names[-1], list)
        MetadataCatalog.get(names[-1]).set(thing_classes=list(class_ids), class_ids=list(class_ids))
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((1, 2), 1.25, r"rate of 'class 2' given 'class 1' is 1\.25, not in \[0, 1\]"),
        ((4, 0), -0.5, r"rate of 'class 0' given 'class 4' is -0\.5"),
        ((0, 1), float("nan"), r"rate of 'class 1' given 'class 0' is nan"),
    ],
)
def test_rates_outside_of_their_range(place, value, message):
    rates = some_rates()
    rates[place] = value
    with pytest.raises(DataError, match=message):
        make_loss(rates=rates)
    with pytest.raises(DataError, match=message):
        make_loss(rates=lambda: rates)(random_logits(), multi_label_targets())


def test_rates_of_another_number_of_classes():
    with pytest.raises(DataError, match=r"shape \(4, 4\), but 5 classes"):
        make_loss(rates=some_rates(size=4))
    with pytest.raises(DataError, match="of 4 classes, but the model has 5"):
        make_loss(rates=ConcurrentRates(some_rates(size=4).numpy(), IDS[:4]))


def test_the_diagonal_of_an_array_is_not_read():
    rates = some_rates()
    loss = make_loss(rates=rates.clone().fill_diagonal_(1.0))
    assert torch.equal(loss.rates, rates)


@pytest.mark.parametrize("key", ["train", "test", "direction"])
def test_unknown_choices(key):
    with pytest.raises(ConfigError, match=rf"{KEY}\.{key.upper()} is 'sigmoid'; it must be one of "):
        make_loss(**{key: "sigmoid"})


def test_build_by_name(tmp_path, registered):
    path = tmp_path / "rates.json"
    ConcurrentRates(some_rates().numpy(), IDS).save(path)
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS = "ConcurrentSoftmaxLoss"
    keys = cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX
    assert (keys.TRAIN, keys.TEST, keys.DIRECTION) == ("concurrent", "concurrent", "given_row")
    keys.RATES_FILE, keys.DIRECTION, keys.TEST = str(path), "maximum", "softmax"
    cfg.DATASETS.TRAIN = (registered(IDS),)
    loss, logits, targets = build_classification_loss(cfg, 5), random_logits(), multi_label_targets()
    assert isinstance(loss, ConcurrentSoftmaxLoss)
    other = make_loss(direction="maximum", test="softmax")
    torch.testing.assert_close(loss(logits, targets)["loss_cls"], other(logits, targets)["loss_cls"])
    torch.testing.assert_close(loss.activation(logits), other.activation(logits))
    with pytest.raises(ConfigError, match="at least one class"):
        ConcurrentSoftmaxLoss(num_classes=0)


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
        return self.loss(logits, multi_label_targets())


def test_nan_logits_stop_training_with_iteration_and_loss(tmp_path):
    """Even in a region that is left out of the loss."""
    values = [0.0, 1.0, float("nan"), 0.0]
    batches = [[{"image_id": f"picture {place}", "value": value}] for place, value in enumerate(values)]
    model = OneLoss()
    step = make_training_step(
        model,
        ResumableLoader(lambda start, seed: iter(batches), 1, 0),
        torch.optim.SGD(model.parameters(), lr=0.1),
        False,
        str(tmp_path),
    )
    message = r"stopped in iteration 2: loss_cls = nan in the batch of the images picture 2"
    with EventStorage() as storage, pytest.raises(NonFiniteLossError, match=message):
        for iteration in range(4):
            storage.iter = iteration
            step.iter = iteration
            step.run_step()
    assert all(value.isfinite().all() for value in model.state_dict().values())
