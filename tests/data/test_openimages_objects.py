"""Grouping of rows into objects, against slow and obvious Python."""

import numpy as np
import pytest

from longtail_det2.data.datasets import openimages_objects
from longtail_det2.data.datasets.openimages_objects import group_rows, merge_near, specificity_rank

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


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def slow_merge(groups, order, threshold, rank):
    """The documented rule with lists and loops: rounds of mutual best matches, complete linkage."""
    clusters = [[key] for key in order]

    def link(one, other):
        if one[0][0] != other[0][0]:
            return 0.0
        worst = 1.0
        for a in one:
            for b in other:
                if a[2] != b[2] or set(groups[a][1]) & set(groups[b][1]):
                    return 0.0
                worst = min(worst, iou(a[1], b[1]))
        return worst

    while True:
        links = []
        for i in range(len(clusters)):
            for j in range(i + 1, len(clusters)):
                if (value := link(clusters[i], clusters[j])) >= threshold:
                    links.append((-value, i, j))
        links.sort()
        best: dict = {}
        for candidate in links:
            for member in candidate[1:]:
                best.setdefault(member, candidate)
        chosen = [c for c in links if best[c[1]] == c and best[c[2]] == c]
        if not chosen:
            break
        gone = set()
        for _, i, j in chosen:
            clusters[i] = clusters[i] + clusters[j]
            gone.add(j)
        clusters = [cluster for index, cluster in enumerate(clusters) if index not in gone]
    merged = {}
    for cluster in clusters:
        leader = min(cluster, key=lambda key: rank[groups[key][1][0]])
        labels = sorted((c for key in cluster for c in groups[key][1]), key=lambda c: rank[c])
        flags = 0
        for key in cluster:
            flags |= groups[key][0]
        merged[leader] = (flags, labels)
    return merged


def make_rank(label):
    return specificity_rank(np.array([0, 1, 1, 2, 0, 1]), np.bincount(label, minlength=NUM_CLASSES))


def test_rank_is_by_depth_then_rarity_then_index():
    assert specificity_rank(np.array([0, 2, 1, 2, 2]), np.array([5, 9, 1, 3, 3])).tolist() == [4, 2, 3, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_equal_boxes_as_a_dict_finds_them(seed):
    rows = random_rows(seed)
    rank = make_rank(rows[1])
    objects = group_rows(*rows, rank)
    expected = slow_groups(*rows, rank)
    assert as_dict(objects) == expected
    assert len(objects.label) == sum(len(labels) for _, labels in expected.values())
    assert objects.num_duplicates == len(rows[0]) - len(objects.label)
    assert objects.num_merged == len(objects.label) - len(objects.image)
    assert (np.diff(objects.image) >= 0).all()


@pytest.mark.parametrize("merge_iou", [1.0, 0.9])
def test_order_of_rows_does_not_matter(merge_iou):
    rows = random_rows(7)
    rank = make_rank(rows[1])
    shuffled = np.random.default_rng(0).permutation(len(rows[0]))
    for ordered in (group_rows(*rows, rank), merge_near(group_rows(*rows, rank), merge_iou, rank)):
        other = group_rows(*(column[shuffled] for column in rows), rank)
        if ordered.num_merged_near:
            other = merge_near(other, merge_iou, rank)
        for name in ("image", "box", "flags", "label_offsets", "label"):
            np.testing.assert_array_equal(getattr(ordered, name), getattr(other, name))


def test_clashing_keys_are_settled_by_the_boxes(monkeypatch):
    rows = random_rows(3)
    rank = make_rank(rows[1])
    monkeypatch.setattr(openimages_objects, "_sort_keys", lambda image, box, flags: image.astype(np.uint64))
    objects = group_rows(*rows, rank)
    assert as_dict(objects) == slow_groups(*rows, rank)
    assert (np.diff(objects.image) >= 0).all()


def test_small_chunks_change_nothing(monkeypatch):
    rows = random_rows(4)
    rank = make_rank(rows[1])
    expected = as_dict(group_rows(*rows, rank)), as_dict(merge_near(group_rows(*rows, rank), 0.85, rank))
    monkeypatch.setattr(openimages_objects, "_CHUNK", 7)
    objects = group_rows(*rows, rank)
    assert (as_dict(objects), as_dict(merge_near(objects, 0.85, rank))) == expected


@pytest.mark.parametrize("merge_iou", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_near_boxes_as_loops_join_them(seed, merge_iou):
    rows = random_rows(seed, 120)
    rank = make_rank(rows[1])
    objects = group_rows(*rows, rank)
    groups = as_dict(objects)
    merged = merge_near(objects, merge_iou, rank)
    expected = slow_merge(groups, list(groups), merge_iou, rank)
    assert as_dict(merged) == expected
    assert merged.num_merged_near == len(groups) - len(expected)


def test_chain_is_not_followed():
    """a-b and b-c overlap enough, a-c do not: complete linkage keeps one of them out."""
    box = np.array([[0, 0, 0.5, 0.5], [0.02, 0, 0.52, 0.5], [0.045, 0, 0.545, 0.5]], dtype=np.float32)
    label = np.arange(3, dtype=np.int32)
    flags = np.zeros(3, np.uint8)
    rank = np.arange(3)
    merged = merge_near(group_rows(np.zeros(3, np.int32), label, box, flags, rank), 0.88, rank)
    assert [set(labels) for _, labels in as_dict(merged).values()] == [{0, 1}, {2}]


def test_no_rows_and_empty_boxes():
    none = np.empty(0, np.int32)
    rank = np.arange(NUM_CLASSES)
    empty = group_rows(none, none, np.empty((0, 4), np.float32), none.astype(np.uint8), rank)
    assert empty.label_offsets.tolist() == [0]
    assert merge_near(empty, 0.5, rank).label_offsets.tolist() == [0]
    points = np.full((2, 4), 0.5, np.float32)
    two = group_rows(np.zeros(2, np.int32), np.arange(2, dtype=np.int32), points, np.zeros(2, np.uint8), rank)
    assert len(two.image) == 1
    points[1] += 1e-3
    two = group_rows(np.zeros(2, np.int32), np.arange(2, dtype=np.int32), points, np.zeros(2, np.uint8), rank)
    assert len(merge_near(two, 0.5, rank).image) == 2
