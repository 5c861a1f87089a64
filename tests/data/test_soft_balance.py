"""Soft-balance sampling: its distribution, its limits, and what it says about bad input."""

import itertools
import logging

import numpy as np
import pytest

from longtail_det2.data.datasets.dataset import MultiLabelDataset, labels_per_image
from longtail_det2.data.samplers import (
    ClassIndex,
    SoftBalanceTrainingSampler,
    soft_balance_probabilities,
)
from longtail_det2.utils.errors import ConfigError

DRAWS = 200_000
LAMBDAS = [0, 0.3, 0.5, 0.7, 1, 1.5, 2]


def take(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.fixture(scope="module")
def index(random_store):
    return ClassIndex.build(*labels_per_image(random_store))


def images_of(index, c):
    return index.images[index.offsets[c] : index.offsets[c + 1]]


def image_weights(index, lambda_, num_images):
    """Probabilities of images when first a class is drawn: proportional to sum_c N_c^(-lambda)."""
    weights = np.zeros(num_images)
    for c in np.flatnonzero(index.counts):
        weights[images_of(index, c)] += float(index.counts[c]) ** -lambda_
    return weights / weights.sum()


def fits(observed, expected):
    """Whether counts are what probabilities lead to, by Pearson's chi-squared."""
    assert (observed[expected == 0] == 0).all()
    wanted = expected[expected > 0] * observed.sum()
    assert wanted.min() > 5, "too few draws for the test"
    chi2 = ((observed[expected > 0] - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    return abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_probabilities_are_the_formula():
    counts = np.array([1418594, 100000, 5000, 300, 20])
    natural, balanced = counts / counts.sum(), np.full(5, 1 / 5)
    for lambda_ in LAMBDAS:
        expected = natural ** (1 - lambda_) * balanced**lambda_
        found = soft_balance_probabilities(counts, lambda_)
        assert found == pytest.approx(expected / expected.sum(), rel=1e-12)
    assert soft_balance_probabilities(counts, 0.7) == pytest.approx(
        [0.572, 0.258, 0.105, 0.045, 0.020], abs=6e-4
    )


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_images_are_drawn_by_their_weights(index, random_store, lambda_):
    weights = image_weights(index, lambda_, len(random_store))
    sampler = SoftBalanceTrainingSampler.from_dataset(random_store, seed=5, lambda_=lambda_)
    observed = np.bincount(take(sampler, DRAWS), minlength=len(weights))
    assert fits(observed, weights)
    if lambda_ == 0.7:  # the test can tell: neighbouring values do not fit
        for other in (0.6, 0.8):
            assert not fits(observed, image_weights(index, other, len(random_store)))


def test_classes_and_images_that_are_never_drawn(make_store, picture, caplog):
    box = (0, 0, 8, 8)
    pictures = [
        picture("a", 8, 8, [(box, [1], 0)]),
        picture("b", 8, 8),
        picture("c", 8, 8, [(box, [4, 1], 0)]),
    ]
    store = make_store(pictures)
    with caplog.at_level(logging.WARNING, "longtail_det2"):
        sampler = SoftBalanceTrainingSampler.from_dataset(MultiLabelDataset(store), seed=0, lambda_=1.0)
    assert "4 of 6 classes" in caplog.text and "animal, puppy, pet, car" in caplog.text
    counts = np.bincount(take(sampler, 20_000), minlength=3)
    assert counts[1] == 0 and counts[0] / counts.sum() == pytest.approx(1 / 4, abs=0.02)
    filtered = MultiLabelDataset(store, filter_empty=True)
    indices = take(SoftBalanceTrainingSampler.from_dataset(filtered, seed=0, lambda_=1.0), 20_000)
    assert np.bincount(indices).tolist() == counts[[0, 2]].tolist()  # the same images, numbered without b


def test_ancestors(random_store):
    """animal > dog > puppy, pet > dog, pet > fish, car alone."""
    index = ClassIndex.build(*labels_per_image(random_store))
    expanded = index.expanded(random_store.hierarchy)
    assert expanded.counts.tolist() == random_store.image_counts(expanded=True).tolist()
    assert expanded.counts.tolist() != index.counts.tolist() == random_store.image_counts().tolist()
    below = [{0, 1, 2}, {1, 2}, {2}, {3, 1, 2, 4}, {4}, {5}]
    for c, classes in enumerate(below):
        union = sorted(set().union(*(images_of(index, one).tolist() for one in classes)))
        assert images_of(expanded, c).tolist() == union
    options = {"seed": 1, "lambda_": 0.7, "ancestors": True}
    sampler = SoftBalanceTrainingSampler.from_dataset(random_store, **options)
    observed = np.bincount(take(sampler, DRAWS), minlength=len(random_store))
    assert fits(observed, image_weights(expanded, 0.7, len(random_store)))
    assert not fits(observed, image_weights(index, 0.7, len(random_store)))
    assert repr(sampler).endswith(", ancestors=True)")


def test_ancestors_of_flat_classes_and_of_records(make_store, picture):
    flat = make_store([picture("a", 8, 8, [((0, 0, 8, 8), [1], 0)])], parents=None, name="flat")
    index = ClassIndex.build(*labels_per_image(flat)).expanded(flat.hierarchy)
    assert index.counts.tolist() == [0, 1, 0, 0, 0, 0] and index.images.tolist() == [0]
    records = [{"annotations": [{"category_id": 0}]}]
    with pytest.raises(ConfigError, match=r"SOFT_BALANCE\.ANCESTORS"):
        SoftBalanceTrainingSampler.from_dataset(records, seed=0, ancestors=True)
    assert take(SoftBalanceTrainingSampler.from_dataset(records, seed=0), 3) == [0, 0, 0]


def test_lambda_between_one_and_two_warns(index, caplog):
    with caplog.at_level(logging.WARNING, "longtail_det2"):
        SoftBalanceTrainingSampler(index, 0, lambda_=1.0)
        assert not caplog.records
        SoftBalanceTrainingSampler(index, 0, lambda_=1.5)
    assert "lambda 1.5" in caplog.text


@pytest.mark.parametrize("lambda_", [-0.1, 2.01, float("nan"), float("inf"), "0.7", None, True])
def test_lambda_out_of_range(index, lambda_):
    with pytest.raises(ConfigError, match=r"SOFT_BALANCE\.LAMBDA"):
        SoftBalanceTrainingSampler(index, 0, lambda_=lambda_)
