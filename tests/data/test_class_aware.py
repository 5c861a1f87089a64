"""Class-aware sampling in passes: each class brings the next images of its own cycle."""

import csv

import numpy as np
import pytest

from longtail_det2.data.samplers import ClassAwareTrainingSampler, ClassIndex
from longtail_det2.utils.errors import ConfigError

LABELS = [[0], [0, 1], [0], [0, 3], [1], [0], [0, 1, 4], [0], [0]]  # 8, 3, 0, 1 and 1 images


def index_of(labels):
    return ClassIndex.build(np.cumsum([0, *map(len, labels)]), np.concatenate(labels).astype(int))


@pytest.mark.parametrize(("name", "size"), [("coco", 22_560), ("voc", 3_875)])
def test_epochs_of_the_published_lists(shared_dir, name, size):
    with (shared_dir / f"data/mlt/{name}_mlt_train.csv").open() as file:
        labels = [[int(one) for one in row["labels"].split()] for row in csv.DictReader(file)]
    index = index_of(labels)
    sampler = ClassAwareTrainingSampler(index, 0, num_samples_per_class=3)
    indices, classes = sampler.epoch_indices(0), len(index.counts)
    assert len(indices) == sampler.epoch_size(0) == size
    shared = [set.intersection(*(set(labels[i]) for i in indices[n : n + 3])) for n in range(0, size - 2, 3)]
    assert all(shared)  # three images in a row have a class in common
    for first in range(0, len(shared) - classes, classes):  # every pass can be one visit to each class
        assert set.union(*shared[first : first + classes]) == set(range(classes))


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_cycles_and_visits(times):
    """With images of one class each, what is drawn tells the class."""
    counts = np.array([40, 7, 0, 1, 3])
    owner = np.repeat(np.arange(5), counts)
    sampler = ClassAwareTrainingSampler(index_of(owner[:, None]), 5, num_samples_per_class=times, reduce=1)
    for epoch in range(3):
        indices = sampler.epoch_indices(epoch)
        assert len(indices) == 160
        visits = owner[indices[: 160 // times * times]].reshape(-1, times)
        assert (visits == visits[:, :1]).all()
        for first in range(0, len(visits), 4):  # classes of a pass differ
            part = visits[first : first + 4, 0]
            assert len(set(part.tolist())) == len(part)
        for c in (0, 1, 3, 4):
            images = indices[owner[indices] == c]
            assert abs(len(images) - 40) <= times
            for first in range(0, len(images), counts[c]):  # an image does not repeat within a cycle
                cycle = images[first : first + counts[c]].tolist()
                assert len(set(cycle)) == len(cycle)
    ones = indices[owner[indices] == 1]
    assert ones[:7].tolist() != ones[7:14].tolist() != ones[14:21].tolist()  # cycles are shuffled anew


def test_first_images_are_drawn_by_their_weights():
    sampler = ClassAwareTrainingSampler(index_of(LABELS), 0, num_samples_per_class=2)
    first = np.array([sampler.epoch_indices(epoch)[:1] for epoch in range(4000)])
    weights = np.zeros(9)
    for image, own in enumerate(LABELS):
        weights[image] = sum(1 / sum(c in other for other in LABELS) for c in own) / 4
    found = np.bincount(first.ravel(), minlength=9) / 4000
    assert np.abs(found - weights).max() < 5 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        *(({"num_samples_per_class": one}, "NUM_SAMPLES_PER_CLASS") for one in (-1, 1.5, True, "3", None)),
        *(({"num_samples_per_class": 3, "reduce": one}, "REDUCE") for one in (0, -4, 0.5, "4")),
    ],
)
def test_bad_options(options, key):
    with pytest.raises(ConfigError, match=rf"DATALOADER\.CLASS_AWARE\.{key} "):
        ClassAwareTrainingSampler(index_of(LABELS), 0, **options)


def test_an_epoch_has_at_least_one_image():
    sampler = ClassAwareTrainingSampler(index_of(LABELS), 0, num_samples_per_class=3, reduce=1000)
    assert len(sampler.epoch_indices(0)) == sampler.epoch_size(0) == 1
