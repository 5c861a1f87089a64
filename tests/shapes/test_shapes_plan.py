"""The generated data set before it is drawn: classes, frequencies, label noise."""

import collections
import dataclasses

import numpy as np
import pytest
from shapes_reading import OPTIONS

from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.shapes import ShapesOptions
from longtail_det2.shapes.plan import geometric_counts, plan_split
from longtail_det2.shapes.vocabulary import SHAPES, ShapesVocabulary
from longtail_det2.utils.errors import ConfigError

# Classes


def test_every_leaf_has_its_shape_and_its_colour_as_parents():
    vocabulary = ShapesVocabulary.build()
    assert vocabulary.num_leaves == 60 and vocabulary.num_classes == 60 + 6 + 10 + 2
    hierarchy = LabelHierarchy.from_json(vocabulary.tree(), vocabulary.class_ids)
    assert hierarchy.leaves.tolist() == list(range(60))
    for leaf, (shape, colour) in enumerate(vocabulary.leaves):
        assert vocabulary.class_ids[leaf] == f"/s/{colour}_{shape}"
        assert {hierarchy.class_ids[p] for p in hierarchy.parents[leaf]} == {f"/s/{shape}", f"/s/{colour}"}
        ancestors = {hierarchy.class_ids[a] for a in hierarchy.ancestors_of(leaf)}
        assert ancestors == {f"/s/{shape}", f"/s/{colour}", "/s/shape", "/s/colour"}
        assert vocabulary.ancestors(leaf) == set(hierarchy.ancestors_of(leaf).tolist())


@pytest.mark.parametrize("num_leaves", [2, 7, 30, 59])
def test_a_subset_of_leaves_is_spread_evenly_and_lists_only_what_occurs(num_leaves):
    vocabulary = ShapesVocabulary.build(num_leaves)
    assert vocabulary.num_leaves == num_leaves == len(set(vocabulary.leaves))
    LabelHierarchy.from_json(vocabulary.tree(), vocabulary.class_ids)
    used = collections.Counter(shape for shape, _ in vocabulary.leaves)
    assert max(used.values()) - min(used[s] for s in SHAPES) <= 1
    for label in range(num_leaves, vocabulary.num_classes):
        assert vocabulary.leaves_below(label)


def test_confused_leaves_share_shape_or_colour():
    vocabulary = ShapesVocabulary.build()
    for leaf, (shape, colour) in enumerate(vocabulary.leaves):
        assert vocabulary.leaves[vocabulary.similar_leaf(leaf, by_colour=True)][0] == shape
        assert vocabulary.leaves[vocabulary.similar_leaf(leaf, by_colour=False)][1] == colour
        assert leaf not in vocabulary.similar_leaves(leaf)


# Frequencies and labels


@pytest.mark.parametrize(("total", "classes", "imbalance"), [(12600, 60, 300), (2000, 30, 50), (600, 60, 1)])
def test_counts_follow_the_geometric_curve(total, classes, imbalance):
    counts = geometric_counts(total, classes, imbalance, floor=4)
    assert counts.sum() == total and counts.min() >= 4 and (np.diff(counts) <= 0).all()
    curve = float(imbalance) ** (-np.arange(classes) / (classes - 1))
    assert np.abs(counts - total * curve / curve.sum()).max() < 1.5


def test_a_short_curve_ends_flat_at_the_floor():
    counts = geometric_counts(1000, 60, 300, floor=4)
    assert counts.sum() == 1000 and counts.min() == 4
    steep = counts[counts > 30]
    assert np.allclose(steep[1:] / steep[:-1], 300 ** (-1 / 59), atol=0.05)
    with pytest.raises(ConfigError, match="more images"):
        geometric_counts(239, 60, 300, floor=4)


def test_rates_are_met_to_the_nearest_object_and_every_leaf_keeps_correct_objects():
    options = dataclasses.replace(OPTIONS, train_images=1000, num_leaves=60, imbalance=100.0)
    vocabulary = ShapesVocabulary.build()
    images, counts = plan_split(options, vocabulary, "train")
    objects = [planned for image in images for planned in image.objects]
    true = collections.Counter(leaf for planned in objects for leaf in planned.leaves)
    assert [true[leaf] for leaf in range(60)] == counts.tolist()
    assert counts.min() >= 4 and counts.max() / counts.min() == pytest.approx(100, rel=0.2)
    correct = collections.Counter(
        leaf for planned in objects if planned.labels == planned.leaves for leaf in planned.leaves
    )
    assert min(correct[leaf] for leaf in range(60)) >= options.min_objects
    missing = [planned for planned in objects if planned.labels[0] >= 60]
    confused = [planned for planned in objects if planned.labels[0] < 60 and planned.labels != planned.leaves]
    two = [planned for planned in objects if len(planned.leaves) == 2]
    assert len(missing) == round(0.1 * len(objects))
    assert len(two) == round(0.15 * len(objects))
    assert len(confused) == round(0.05 * len(objects))
    assert sum(planned.group for planned in objects) == round(0.05 * len(objects))
    for planned in missing:
        assert len(planned.labels) == 1 and planned.labels[0] in vocabulary.parents[planned.leaves[0]]
    by_shape = sum(vocabulary.class_names[planned.labels[0]] in SHAPES for planned in missing) / len(missing)
    assert 0.35 < by_shape < 0.65
    for planned in two:
        (shape, colour), (other_shape, other_colour) = (vocabulary.leaves[leaf] for leaf in planned.leaves)
        assert planned.labels == planned.leaves and shape == other_shape and colour != other_colour


def test_validation_is_balanced_and_clean():
    vocabulary = ShapesVocabulary.build()
    images, counts = plan_split(ShapesOptions(validation_images=200), vocabulary, "validation")
    assert counts.max() - counts.min() <= 1
    objects = [planned for image in images for planned in image.objects]
    assert all(planned.labels == planned.leaves for planned in objects)
    assert any(len(planned.leaves) == 2 for planned in objects)
