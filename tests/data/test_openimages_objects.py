"""Grouping of rows into objects, against slow and obvious Python."""

import numpy as np
import pytest

from longtail_det2.data.datasets import openimages
from longtail_det2.data.datasets.openimages import group_rows
from longtail_det2.data.hierarchy import LabelHierarchy

NUM_CLASSES = 6
GROUP_OF = 4


def random_rows(seed: int, num_rows: int = 300):
    """Rows with many equal and nearly equal boxes, in random order."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 8, num_rows).astype(np.int32)
    label = generator.integers(0, NUM_CLASSES, num_rows).astype(np.int32)
    corner = generator.choice([0.0, 0.1, 0.4], (num_rows, 2))
    jitter = generator.choice([0.0, 0.0, 0.01, 0.02, 0.03], (num_rows, 4))
    box = (np.concatenate([corner, corner + 0.4], axis=1) + jitter).astype(np.float32)
    flags = generator.choice([0, 0, 0, 1, 2, GROUP_OF], num_rows).astype(np.uint8)
    return image, label, box, flags


def slow_groups(image, label, box, flags, rank):
    """{(image, box, group-of): (united flags, labels)} by a dict."""
    groups: dict = {}
    for row in range(len(image)):
        key = (int(image[row]), tuple(box[row].tolist()), int(flags[row] & GROUP_OF))
        old_flags, labels = groups.get(key, (0, set()))
        groups[key] = (old_flags | int(flags[row]), labels | {int(label[row])})
    return {key: (bits, sorted(labels, key=lambda c: rank[c])) for key, (bits, labels) in groups.items()}


def as_dict(objects):
    found = {}
    for index in range(len(objects.image)):
        begin, end = objects.label_offsets[index : index + 2]
        flags = int(objects.flags[index])
        key = (int(objects.image[index]), tuple(objects.box[index].tolist()), flags & GROUP_OF)
        assert key not in found
        found[key] = (flags, objects.label[begin:end].tolist())
    return found


def make_rank(label):
    return LabelHierarchy(list("abcdef"), [[], [0], [0], [1], [], [4]]).specificity_order(label)


def test_rank_is_by_depth_then_rarity_then_index():
    hierarchy = LabelHierarchy(list("abcde"), [[], [2], [0], [2], [2]])
    labels = np.repeat(np.arange(5), [5, 9, 1, 3, 3])
    assert hierarchy.specificity_order(labels).tolist() == [4, 2, 3, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_equal_boxes_as_a_dict_finds_them(seed):
    rows = random_rows(seed)
    rank = make_rank(rows[1])
    objects = group_rows(*rows, rank)
    expected = slow_groups(*rows, rank)
    assert as_dict(objects) == expected
    assert len(objects.label) == sum(len(labels) for _, labels in expected.values())
    assert (np.diff(objects.image) >= 0).all()


@pytest.mark.parametrize("chunk", [7, openimages._CHUNK_ROWS])
def test_order_of_rows_and_small_chunks_change_nothing(monkeypatch, chunk):
    rows = random_rows(7)
    rank = make_rank(rows[1])
    ordered = group_rows(*rows, rank)
    monkeypatch.setattr(openimages, "_CHUNK_ROWS", chunk)
    shuffled = np.random.default_rng(0).permutation(len(rows[0]))
    other = group_rows(*(column[shuffled] for column in rows), rank)
    for name in ("image", "box", "flags", "label_offsets", "label"):
        np.testing.assert_array_equal(getattr(ordered, name), getattr(other, name))


def test_no_rows_and_empty_boxes():
    none = np.empty(0, np.int32)
    rank = np.arange(NUM_CLASSES)
    empty = group_rows(none, none, np.empty((0, 4), np.float32), none.astype(np.uint8), rank)
    assert empty.label_offsets.tolist() == [0]
    rows = np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.full((3, 4), 0.5, np.float32)
    assert len(group_rows(*rows, np.zeros(3, np.uint8), rank).image) == 1
    points = np.zeros((2, 4), np.float32)
    points[0] = -0.0  # the same place as 0
    rows = np.zeros(2, np.int32), np.arange(2, dtype=np.int32), points
    assert group_rows(*rows, np.zeros(2, np.uint8), rank).label_offsets.tolist() == [0, 2]
