"""Objects within objects: frequencies, overlap, and that concurrent rates find the partners."""

import collections
import dataclasses

import numpy as np
import pytest
from shapes_reading import OPTIONS, read_csv, read_json, runs_to_mask

from longtail_det2.data.concurrent_rates import ConcurrentRates, RateOptions
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.datasets.shapes import ShapesOptions, generate_shapes
from longtail_det2.data.datasets.shapes_drawing import draw_image
from longtail_det2.data.datasets.shapes_plan import plan_split
from longtail_det2.data.datasets.shapes_vocabulary import ShapesVocabulary
from longtail_det2.data.overlaps import box_iou
from longtail_det2.utils.errors import ConfigError

NESTED = dataclasses.replace(OPTIONS, nested_rate=0.15, image_size=128)


@pytest.mark.parametrize("num_leaves", [7, 24, 60])
def test_partners_share_a_shape_and_are_not_those_of_two_coloured_objects(num_leaves):
    vocabulary = ShapesVocabulary.build(num_leaves)
    colours = collections.Counter(shape for shape, _ in vocabulary.leaves)
    co_labels = {tuple(pair) for pair in vocabulary.co_label_pairs(partners_only=True).tolist()}
    pairs = vocabulary.nested_pairs().tolist()
    several = [leaf for leaf in range(num_leaves) if colours[vocabulary.leaves[leaf][0]] > 1]
    for role in (0, 1):
        assert sorted(pair[role] for pair in pairs) == several
    for outer, inner in pairs:
        assert vocabulary.leaves[outer][0] == vocabulary.leaves[inner][0] and outer != inner
        if colours[vocabulary.leaves[outer][0]] >= 4:
            assert (min(outer, inner), max(outer, inner)) not in co_labels


def test_the_plan_keeps_frequencies_and_rates():
    vocabulary = ShapesVocabulary.build(NESTED.num_leaves)
    partner = dict(vocabulary.nested_pairs().tolist())
    for split in ("train", "validation"):
        images, counts = plan_split(NESTED, vocabulary, split)
        objects = [planned for image in images for planned in image.objects]
        true = collections.Counter(leaf for planned in objects for leaf in planned.leaves)
        assert [true[leaf] for leaf in range(vocabulary.num_leaves)] == counts.tolist()
        own = [planned for planned in objects if not planned.within]
        assert sum(planned.inner is not None for planned in own) == round(0.15 * len(own))
        assert sum(planned.group for planned in own) == round(0.05 * len(own))
        assert sum(len(planned.leaves) == 2 for planned in own) == round(0.15 * len(own))
        for image in images:
            assert 1 <= sum(not planned.within for planned in image.objects) <= NESTED.max_objects
            for before, planned in zip((None, *image.objects), (*image.objects, None), strict=True):
                inner = None if before is None else before.inner
                assert (planned is not None and planned.within) == (inner is not None)
                if planned is not None and planned.within:
                    assert before is not None and planned.leaves == planned.labels == (inner,)
                    assert partner[before.leaves[0]] == inner and before.labels == before.leaves
            for label in image.negatives:
                assert not true_leaves(image) & set(vocabulary.leaves_below(label))
    counts = plan_split(NESTED, vocabulary, "train")[1]
    assert counts.min() >= 4 and counts.max() / counts.min() > 10


def true_leaves(image):
    return {leaf for planned in image.objects for leaf in planned.leaves}


def test_boxes_overlap_and_both_are_seen():
    vocabulary = ShapesVocabulary.build()
    options = ShapesOptions(train_images=100, nested_rate=0.2, imbalance=5.0, min_objects=1)
    images, _ = plan_split(options, vocabulary, "train")
    shapes = set()
    for index, planned in enumerate(images):
        _, drawn = draw_image(planned, vocabulary, 128, 0, "train", index)
        boxes = np.array([one.region.box for one in drawn], dtype=float)
        for k, one in enumerate(planned.objects):
            if not one.within:
                continue
            iou = float(box_iou(boxes[k - 1][None], boxes[k][None])[0])
            assert 0.5 <= iou <= 0.85
            outer, inner = (runs_to_mask(drawn[j].region.runs) for j in (k - 1, k))
            assert not (outer & inner).any() and outer.sum() > 0.15 * (outer.sum() + inner.sum())
            assert drawn[k - 1].occluded and not drawn[k].occluded and not drawn[k].truncated
            shapes.add(vocabulary.leaves[one.leaves[0]][0])
    assert len(shapes) == 6


def implicit_rates(folder, options):
    """Rates from overlaps of IoU 0.5 alone, of the data set's training split."""
    generate_shapes(folder, options, workers=1, progress=False)
    store = prepare_openimages(
        [folder / "annotations/train-annotations-bbox.csv"],
        [folder / "annotations/train-human-imagelabels.csv"],
        folder / "annotations/class-descriptions.csv",
        folder / "annotations/hierarchy.json",
        folder / "images/train",
        folder / "stores/train",
        workers=1,
        progress=False,
    )
    return ConcurrentRates.of_stores([store], RateOptions(explicit=False, hierarchy=False, implicit_iou=0.5))


def test_concurrent_rates_find_the_partners_and_nothing_without_them(tmp_path):
    options = dataclasses.replace(NESTED, formats=("openimages",))
    rates = implicit_rates(tmp_path / "nested", options).rates
    vocabulary = ShapesVocabulary.build(options.num_leaves)
    images, _ = plan_split(options, vocabulary, "train")
    together, objects = np.zeros_like(rates), np.zeros(vocabulary.num_classes)
    for image in images:
        for planned in image.objects:
            objects[list(planned.labels)] += not planned.group
            if planned.inner is not None:
                pair = [planned.leaves[0], planned.inner]
                together[pair, pair[::-1]] += 1
    assert np.count_nonzero(together) > 20
    assert np.allclose(rates, together / np.maximum(objects, 1)[:, None])
    rows = read_csv(tmp_path / "nested/annotations/train-annotations-bbox.csv")
    counted = read_json(tmp_path / "nested/generation.json")["counts"]["train"]
    assert counted["nested"] == together.sum() / 2 and counted["rows"] == len(rows)

    plain = dataclasses.replace(options, nested_rate=0.0)
    assert not implicit_rates(tmp_path / "plain", plain).rates.any()


def test_too_many_are_refused():
    vocabulary = ShapesVocabulary.build(2)  # two shapes, so that no leaf has a partner
    options = ShapesOptions(train_images=50, num_leaves=2, nested_rate=0.1, co_label_rate=0, imbalance=1.0)
    with pytest.raises(ConfigError, match="room for 0; lower nested_rate"):
        plan_split(options, vocabulary, "train")
