import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data.common import MapDataset, ToIterableDataset
from detectron2.data.samplers import RepeatFactorTrainingSampler as Detectron2RepeatFactor

from longtail_det2.data.datasets.dataset import MultiLabelDataset, labels_per_image
from longtail_det2.data.samplers import (
    ClassAwareTrainingSampler,
    ClassIndex,
    PhasedTrainingSampler,
    RepeatFactorTrainingSampler,
    SoftBalanceTrainingSampler,
    TrainingSampler,
    UniformTrainingSampler,
    make_sampler,
    repeat_factors,
)
from longtail_det2.utils.errors import ConfigError, DataError


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def uniform(**options):
    return UniformTrainingSampler(7, 3, **options)


def repeating(**options):
    factors = np.random.default_rng(0).uniform(1, 3, 9).astype(np.float32)
    return RepeatFactorTrainingSampler(factors, 3, **options)


def class_aware(**options):
    index = ClassIndex.build(np.array([0, 2, 2, 3, 5]), np.array([0, 2, 0, 0, 4]))
    return ClassAwareTrainingSampler(index, 3, **options)


SAMPLERS = pytest.mark.parametrize("make", [uniform, repeating, class_aware])


def test_streams_are_those_of_committed_results():
    """Published tables name seeds: the same seed draws the same images in every version."""
    index = ClassIndex.build(np.array([0, 2, 2, 3, 5]), np.array([0, 2, 0, 0, 4]))
    records = [{"annotations": [{"category_id": i % 2}]} for i in range(5)]
    hybrid = [
        ["UniformTrainingSampler", 2],
        ["ClassAwareTrainingSampler", 2],
        ["SoftBalanceTrainingSampler", 3, {"lambda_": 0.5}],
    ]
    for sampler, expected in (
        (UniformTrainingSampler(7, 3), "562143021405"),
        (RepeatFactorTrainingSampler(np.array([1.5, 1, 2.25, 1.75]), 3), "230212331223"),
        (ClassAwareTrainingSampler(index, 3), "323303303030"),
        (SoftBalanceTrainingSampler(index, 3), "003300003303"),
        (SoftBalanceTrainingSampler(index, 3, lambda_=1.5), "300003033333"),
        (
            PhasedTrainingSampler.from_dataset(records, seed=3, phases=hybrid, batch_size=3),
            "421301233110301410331",
        ),
    ):
        assert take(sampler, len(expected)) == [int(one) for one in expected]


@SAMPLERS
def test_start_continues_the_stream(make):
    stream = take(make(), 200)
    assert all(type(index) is int for index in stream)
    assert stream == take(make(), 200)
    for start in (0, 1, 6, 7, 8, 50, 143):
        assert take(make(start=start), 200 - start) == stream[start:]
        for world in (2, 3):
            for rank in range(world):
                part = take(make(start=start, rank=rank, world_size=world), 10)
                assert part == stream[start + rank :: world][:10]


@SAMPLERS
def test_another_seed_is_another_stream(make):
    sampler = make()
    sampler.seed = 4
    assert take(sampler, 100) != take(make(), 100)


@SAMPLERS
def test_indices_are_int32(make):
    assert make().epoch_indices(0).dtype == np.int32
    assert len(make().epoch_indices(2)) == make().epoch_size(2)


def test_uniform_epochs_are_permutations():
    stream = np.array(take(uniform(), 21)).reshape(3, 7)
    assert (np.sort(stream, axis=1) == np.arange(7)).all()
    assert len({tuple(row) for row in stream.tolist()}) == 3


class _Identity(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def test_two_ranks_with_two_workers_see_every_image_once_an_epoch():
    """As Detectron2 0.6 runs samplers: inside each worker, by ToIterableDataset."""
    seen = []
    for rank in range(2):
        sampler = UniformTrainingSampler(40, 1, rank=rank, world_size=2)
        stream = ToIterableDataset(MapDataset(_Identity(40), _same), sampler)
        loader = torch.utils.data.DataLoader(stream, batch_size=2, num_workers=2)
        seen += [int(one) for batch in itertools.islice(loader, 30) for one in batch]
    assert Counter(seen) == dict.fromkeys(range(40), 3)


def _same(item):
    return item


def test_repeat_factors_equal_detectron2(random_store):
    offsets, labels = labels_per_image(random_store)
    records = [
        {"annotations": [{"category_id": int(label)} for label in labels[a:b]]}
        for a, b in itertools.pairwise(offsets)
    ]
    dataset = MultiLabelDataset(random_store)
    for threshold in (0.01, 0.3, 1.0):
        expected = Detectron2RepeatFactor.repeat_factors_from_category_frequency(records, threshold).numpy()
        assert np.array_equal(repeat_factors(random_store, threshold), expected)
        assert np.array_equal(repeat_factors(dataset, threshold), expected)
        assert np.array_equal(repeat_factors(records, threshold), expected)
    assert repeat_factors(random_store, 0.3).max() > 1.5


def test_repeat_factor_frequencies():
    factors = np.array([1.0, 2.25, 1.5, 1.0], np.float32)
    sampler = RepeatFactorTrainingSampler(factors, 0)
    epochs = 2000
    counts = sum(np.bincount(sampler.epoch_indices(e), minlength=4) for e in range(epochs)) / epochs
    assert counts[[0, 3]].tolist() == [1, 1]
    assert counts[1:3] == pytest.approx(factors[1:3], abs=0.05)


def test_factors_of_one_are_uniform():
    stream = np.array(take(RepeatFactorTrainingSampler(np.ones(6), 0), 24)).reshape(4, 6)
    assert (np.sort(stream, axis=1) == np.arange(6)).all()


def test_class_index():
    offsets, labels = np.array([2, 6, 6, 8]), np.array([9, 9, 1, 0, 1, 1, 4, 1], np.int16)
    index = ClassIndex.build(offsets, labels, num_classes=7)
    assert index.offsets.tolist() == [0, 1, 3, 3, 3, 4, 4, 4] and index.images.tolist() == [0, 0, 2, 2]
    assert index.counts.tolist() == [1, 2, 0, 0, 1, 0, 0]
    assert index.images.dtype == np.int32
    assert ClassIndex.build(np.array([0]), np.array([], np.int16)).counts.tolist() == []


@pytest.mark.parametrize(
    "kind", [UniformTrainingSampler, RepeatFactorTrainingSampler, ClassAwareTrainingSampler]
)
def test_data_without_images_or_objects(kind, make_store, picture):
    with pytest.raises(DataError):
        kind.from_dataset(make_store([], name="none"), seed=0)
    if kind is ClassAwareTrainingSampler:
        with pytest.raises(DataError, match="no image of the training data set has one"):
            kind.from_dataset(make_store([picture("a", 8, 8)], name="bare"), seed=0)
    else:
        sampler = kind.from_dataset(make_store([picture("a", 8, 8)], name="bare"), seed=0)
        assert take(sampler, 3) == [0, 0, 0]


def test_argument_errors():
    with pytest.raises(ConfigError, match="must not be negative"):
        UniformTrainingSampler(3, -1)
    with pytest.raises(ConfigError, match="rank 2 must be below"):
        UniformTrainingSampler(3, 0, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="REPEAT_THRESHOLD"):
        repeat_factors([], 0.0)
    with pytest.raises(DataError, match="at least 1"):
        RepeatFactorTrainingSampler(np.array([0.5]), 0)


def test_a_custom_sampler():
    class EveryOther(TrainingSampler):
        @classmethod
        def from_dataset(cls, dataset, *, seed, start=0):
            return cls(seed=seed, start=start)

        def epoch_size(self, epoch):
            return 3

        def epoch_indices(self, epoch):
            return np.arange(3, dtype=np.int32) * 2 + epoch

    assert take(EveryOther(seed=0), 7) == [0, 2, 4, 1, 3, 5, 2]
    assert take(EveryOther(seed=0, start=4, rank=1, world_size=2), 2) == [5, 4]
    assert take(make_sampler(EveryOther, [], seed=0, start=3), 2) == [1, 3]
    with pytest.raises(ConfigError, match="EveryOther has no option 'speed'"):
        make_sampler(EveryOther, [], seed=0, speed=1)
