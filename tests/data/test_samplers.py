import itertools

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler as Detectron2RepeatFactor

from longtail_det2.data.datasets.dataset import MultiLabelDataset, labels_per_image
from longtail_det2.data.samplers import (
    ClassAwareTrainingSampler,
    ClassIndex,
    PhasedTrainingSampler,
    RepeatFactorTrainingSampler,
    SoftBalanceTrainingSampler,
    UniformTrainingSampler,
    repeat_factors,
)
from longtail_det2.utils.errors import ConfigError, DataError


def take(sampler, count):
    return list(itertools.islice(sampler, count))


INDEX = ClassIndex.build(np.array([0, 2, 2, 3, 5]), np.array([0, 2, 0, 0, 4]))
RECORDS = [{"annotations": [{"category_id": i % 2}]} for i in range(5)]


def uniform(seed=3, **options):
    return UniformTrainingSampler(7, seed, **options)


def repeating(seed=3, **options):
    factors = np.random.default_rng(0).uniform(1, 3, 9).astype(np.float32)
    return RepeatFactorTrainingSampler(factors, seed, **options)


def soft_balance(seed=3, **options):
    return SoftBalanceTrainingSampler(INDEX, seed, **options)


def class_aware(seed=3, **options):
    return ClassAwareTrainingSampler(INDEX, seed, **options)


def class_passes(seed=3, **options):
    return class_aware(seed, num_samples_per_class=3, reduce=1, **options)


def phased(seed=3, rank=0, world_size=1, **options):
    phases = [["UniformTrainingSampler", 30], ["RepeatFactorTrainingSampler", 50, {"threshold": 0.9}]]
    phases.append(["SoftBalanceTrainingSampler", 40, {"lambda_": 0.5}])
    options |= {"phases": phases, "batch_size": 8}
    sampler = PhasedTrainingSampler.from_dataset(RECORDS, seed=seed, **options)
    sampler.rank, sampler.world_size = rank, world_size
    return sampler


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (uniform, [7, 14, 140]),
        (repeating, [18, 140]),
        (soft_balance, [65_536, 131_072]),
        (class_aware, [65_536, 131_072]),
        (class_passes, [9, 18, 180]),
        (phased, [5, 240, 640, 66_176]),  # of an epoch, of phases, of a block of the last one
    ],
)
def test_streams(make, ends):
    """Continued anywhere, shared by ranks, epoch by epoch, counted: always the same stream."""
    stream = take(make(), ends[-1] + 200)
    assert all(type(index) is int for index in stream)
    assert take(make(seed=4), 100) != stream[:100] == take(make(), 100)
    edges = [end + step for end in (1, *ends) for step in (-1, 0, 1)]
    for start in [*edges, *np.random.default_rng(0).integers(0, len(stream) - 150, 8).tolist()]:
        for world in (1, 2, 3):
            for rank in range(world):
                part = take(make(start=start, rank=rank, world_size=world), 30)
                assert part == stream[start + rank :: world][:30]
    sampler, position = make(rank=1, world_size=2, start=9), 0
    for epoch in range(6):
        indices = sampler.epoch_indices(epoch)
        assert len(indices) == sampler.epoch_size(epoch) and indices.dtype == np.int32
        known = stream[position : position + len(indices)]
        assert indices[: len(known)].tolist() == known
        assert sampler.locate(position) == sampler.locate(position + len(indices) - 1) == (epoch, position)
        position += len(indices)
    for begin, end in [(0, 1), (5, 5), (3, len(stream)), (ends[0] - 1, ends[0] + 1), (100, ends[-1])]:
        expected = np.bincount(np.array(stream[begin:end], int), minlength=9)
        assert np.array_equal(sampler.draw_counts(begin, end, 9), expected)


def test_streams_are_those_of_committed_results():
    """Published tables name seeds: the same seed draws the same images in every version."""
    hybrid = [
        ["UniformTrainingSampler", 2],
        ["ClassAwareTrainingSampler", 2],
        ["SoftBalanceTrainingSampler", 3, {"lambda_": 0.5}],
    ]
    for sampler, expected in (
        (uniform(), "562143021405"),
        (RepeatFactorTrainingSampler(np.array([1.5, 1, 2.25, 1.75]), 3), "230212331223"),
        (class_aware(), "323303303030"),
        (class_passes(), "333000023333"),
        (soft_balance(), "003300003303"),
        (soft_balance(lambda_=1.5), "300003033333"),
        (
            PhasedTrainingSampler.from_dataset(RECORDS, seed=3, phases=hybrid, batch_size=3),
            "421301233110301410331",
        ),
    ):
        assert take(sampler, len(expected)) == [int(one) for one in expected]


@pytest.mark.parametrize("filter_empty", [False, True])
def test_repeat_factors_equal_detectron2(random_store, filter_empty):
    dataset = MultiLabelDataset(random_store, filter_empty=filter_empty)
    offsets, labels = labels_per_image(dataset)
    records = [
        {"annotations": [{"category_id": int(label)} for label in labels[a:b]]}
        for a, b in itertools.pairwise(offsets)
    ]
    for threshold in (0.01, 0.3, 1.0):
        expected = Detectron2RepeatFactor.repeat_factors_from_category_frequency(records, threshold).numpy()
        for source in (dataset, records, *(() if filter_empty else (random_store,))):
            assert np.array_equal(repeat_factors(source, threshold), expected)
    assert repeat_factors(dataset, 0.3).max() > 1.5


def test_repeat_factor_frequencies():
    factors = np.array([1.0, 2.25, 1.5, 1.0], np.float32)
    sampler = RepeatFactorTrainingSampler(factors, 0)
    epochs = 2000
    counts = sum(np.bincount(sampler.epoch_indices(e), minlength=4) for e in range(epochs)) / epochs
    assert counts[[0, 3]].tolist() == [1, 1]
    assert counts[1:3] == pytest.approx(factors[1:3], abs=0.05)


def test_class_index():
    offsets, labels = np.array([2, 6, 6, 8]), np.array([9, 9, 1, 0, 1, 1, 4, 1], np.int16)
    index = ClassIndex.build(offsets, labels, num_classes=7)
    assert index.offsets.tolist() == [0, 1, 3, 3, 3, 4, 4, 4] and index.images.tolist() == [0, 0, 2, 2]
    assert index.counts.tolist() == [1, 2, 0, 0, 1, 0, 0]
    assert index.images.dtype == np.int32
    assert ClassIndex.build(np.array([0]), np.array([], np.int16)).counts.tolist() == []


@pytest.mark.parametrize(
    "kind", [UniformTrainingSampler, RepeatFactorTrainingSampler, SoftBalanceTrainingSampler]
)
def test_data_without_images_or_objects(kind, make_store, picture):
    with pytest.raises(DataError):
        kind.from_dataset(make_store([], name="none"), seed=0)
    bare = make_store([picture("a", 8, 8)], name="bare")
    if kind is SoftBalanceTrainingSampler:
        with pytest.raises(DataError, match="needs objects, but no image of the training data set has one"):
            kind.from_dataset(bare, seed=0)
    else:
        assert take(kind.from_dataset(bare, seed=0), 3) == [0, 0, 0]


def test_argument_errors():
    with pytest.raises(ConfigError, match="must not be negative"):
        UniformTrainingSampler(3, -1)
    with pytest.raises(ConfigError, match="rank 2 must be below"):
        UniformTrainingSampler(3, 0, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="REPEAT_THRESHOLD"):
        repeat_factors([], 0.0)
    with pytest.raises(DataError, match="at least 1"):
        RepeatFactorTrainingSampler(np.array([0.5]), 0)
