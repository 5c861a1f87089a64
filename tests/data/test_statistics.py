"""Class statistics: counts against loops over objects, rates, files, frequency bins."""

import itertools
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from factories import (
    ANIMAL,
    CAR,
    CLASS_IDS,
    DOG,
    FISH,
    GROUP_OF,
    PARENTS,
    PET,
    PUPPY,
    Picture,
    build_store,
    crowded_pictures,
)

from longtail_det2.data import statistics as module
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.statistics import (
    AnchorStatistics,
    ClassStatistics,
    compute_statistics,
    frequency_bins,
    read_statistics,
    write_statistics,
)
from longtail_det2.utils.errors import ConfigError, DataError


def register(records, name="plain"):
    """Registers plain records; returns the name."""
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=CLASS_IDS)
    return name


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowded")
    return [build_store(folder, crowded_pictures(seed), name=f"store{seed}") for seed in range(2)]


def slow_counts(store):
    """The definitions as loops: images, instances and pairs."""
    images, instances = np.zeros((2, store.num_classes), int)
    pairs = np.zeros((store.num_classes, store.num_classes), int)
    for image in range(len(store)):
        seen = set()
        for row in range(*store.object_offsets[image : image + 2].tolist()):
            labels = set(store.labels[slice(*store.label_offsets[row : row + 2])].tolist())
            labels = labels.union(*(store.hierarchy.ancestors_of(label).tolist() for label in labels))
            instances[list(labels)] += 1
            seen |= labels
            if not store.flags[row] & GROUP_OF:
                pairs[tuple(np.array(list(itertools.product(labels, repeat=2))).T)] += 1
        images[list(seen)] += 1
    return images, instances, pairs


def assert_counts(statistics, expected):
    found = statistics.image_counts, statistics.instance_counts, statistics.cooccurrence
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int64


@pytest.mark.parametrize("block", [2, 1000])
def test_counts_as_loops_find_them_in_one_store_and_in_two(crowded, monkeypatch, block):
    monkeypatch.setattr(module, "_SETS_AT_ONCE", block)
    expected = [slow_counts(store) for store in crowded]
    assert_counts(compute_statistics(crowded[0]), expected[0])
    together = compute_statistics(crowded)
    assert_counts(together, [one + other for one, other in zip(*expected, strict=True)])
    assert together.num_images == sum(map(len, crowded)) and together.class_ids == tuple(CLASS_IDS)


def test_whole_images_count_as_one_object_each(crowded):
    store = crowded[0]
    labels = [
        sorted({label for one in record["annotations"] for label in one["category_ids"]})
        for record in MultiLabelDataset(store)
    ]
    pictures = [
        Picture(f"{row:03}", objects=[((0, 0, 1, 1), of_image, 0)] if of_image else [])
        for row, of_image in enumerate(labels)
    ]
    expected = slow_counts(build_store(store.path.parent, pictures, name="whole"))
    assert_counts(compute_statistics(store, image_level=True), expected)
    assert compute_statistics(store, image_level=True).num_images == len(store)
    name = register([{"annotations": one["annotations"]} for one in MultiLabelDataset(store)])
    MetadataCatalog.get(name).set(hierarchy=store.hierarchy)
    assert_counts(compute_statistics(name, image_level=True), expected)


def test_plain_records_count_like_their_store(crowded):
    records = list(MultiLabelDataset(crowded[0]))
    flat = build_store(crowded[0].path.parent, crowded_pictures(0), parents=None, name="flat")
    name = register(records)
    assert_counts(compute_statistics(name), slow_counts(flat))
    MetadataCatalog.get(name).set(hierarchy=crowded[0].hierarchy)
    assert_counts(compute_statistics(name), slow_counts(crowded[0]))


def test_detectron2_records_have_one_label_and_crowds():
    records = [
        {"annotations": [{"category_id": DOG}, {"category_id": DOG, "iscrowd": 1}]},
        {"annotations": [{"category_ids": [DOG, FISH]}, {"category_id": CAR, "category_ids": []}]},
        {},
    ]
    statistics = compute_statistics(register(records))
    assert statistics.num_images == 3 and statistics.image_counts.tolist() == [0, 2, 0, 0, 1, 1]
    assert statistics.instance_counts.tolist() == [0, 3, 0, 0, 1, 1]
    assert statistics.cooccurrence[DOG].tolist() == [0, 2, 0, 0, 1, 0]


def test_labels_that_are_not_classes_are_refused():
    records = []
    register(records)
    for message, entry in (
        ("'plain' has labels that are not among its 6 classes", {"category_id": 6}),
        ("'plain' has labels that are not among its 6 classes", {"category_id": -1}),
        ("category_id", {"bbox": []}),
    ):
        records[:] = [{"annotations": [entry]}]
        with pytest.raises(DataError, match=message):
            compute_statistics("plain")


def test_objects_with_very_many_labels(make_store):
    """Label sets that do not fit into one 64-bit code."""
    generator = np.random.default_rng(0)
    ids = [f"c{index}" for index in range(300)]
    labels = [generator.choice(300, 12, replace=False).tolist() for _ in range(20)]
    objects = [((0, 0, 1 + n, 2), labels[n % 20][:: 1 if n % 2 else -1], 0) for n in range(30)]
    store = make_store([Picture("a", objects=objects)], ids, None)
    assert_counts(compute_statistics(store), slow_counts(store))


def test_rates_are_conditional_on_the_row(make_store):
    """Three dogs, one of them also a fish; two animals of no known kind."""
    objects = [([DOG], 3), ([FISH, DOG], 1), ([ANIMAL], 2), ([CAR], 1)]
    pictures = [
        Picture(f"{n}{k}", objects=[((0, 0, 5, 5), labels, 0)])
        for n, (labels, times) in enumerate(objects)
        for k in range(times)
    ]
    statistics = compute_statistics(make_store(pictures))
    r = statistics.rates()
    assert statistics.cooccurrence.diagonal().tolist() == [6, 4, 0, 4, 1, 1]
    assert r[DOG, ANIMAL] == r[DOG, PET] == r[FISH, PET] == 1
    assert r[ANIMAL, DOG] == 4 / 6 and r[PET, DOG] == 1
    assert r[FISH, DOG] == 1 and r[DOG, FISH] == 1 / 4 and r[FISH, ANIMAL] == 1
    assert not r[CAR].any() and not r[:, CAR].any() and not r.diagonal().any()
    # A puppy is an animal by definition, though no puppy was seen.
    assert r[PUPPY].tolist() == [1, 1, 0, 1, 0, 0]


def test_one_class_and_no_objects(make_store):
    only = make_store([Picture("a", objects=[((0, 0, 5, 5), [0], 0)] * 2)], ["only"], None)
    assert compute_statistics(only).cooccurrence.tolist() == [[2]]
    for name, pictures in (("none", []), ("bare", [Picture("a"), Picture("b")])):
        empty = compute_statistics(make_store(pictures, name=name))
        np.testing.assert_array_equal(empty.rates(), LabelHierarchy.from_json(PARENTS, CLASS_IDS).ancestors)
        assert not empty.image_counts.any() and not empty.instance_counts.any()


def test_data_sets_that_do_not_go_together(make_store):
    first = make_store(crowded_pictures(0))
    other = make_store([], [*CLASS_IDS[:4], "shark", "car"], {}, name="other")
    with pytest.raises(DataError, match=r"'fish'.*'shark'"):
        compute_statistics([first, other])
    with pytest.raises(ConfigError):
        compute_statistics([])
    with pytest.raises(DataError, match="nowhere"):
        compute_statistics("nowhere")


def some_statistics():
    pairs = np.diag([9, 6, 0, 7, 2, 5])
    pairs[DOG, CAR] = pairs[CAR, DOG] = 3
    hierarchy = LabelHierarchy.from_json(PARENTS, CLASS_IDS)
    anchors = AnchorStatistics(np.arange(6) * 3, 20, 5_000_000_000, {"INPUT.GROUP_OF": "drop", "a": [[0.5]]})
    return ClassStatistics(CLASS_IDS, 7, np.arange(6), np.arange(6) * 2, pairs, anchors, hierarchy)


@pytest.mark.parametrize("full", [True, False])
def test_file_keeps_everything(tmp_path, full):
    path, statistics = tmp_path / "statistics.json", some_statistics()
    if not full:
        statistics = ClassStatistics(("ünï", "b"), 3, [1, 2], [2, 2])
    write_statistics(path, statistics)
    again = read_statistics(path, statistics.class_ids)
    for key in ("image_counts", "instance_counts", "cooccurrence"):
        np.testing.assert_array_equal(getattr(again, key), getattr(statistics, key))
    for key in ("class_ids", "num_images", "hierarchy"):
        assert getattr(again, key) == getattr(statistics, key)
    if full:
        assert again.anchors.positives.tolist() == [0, 3, 6, 9, 12, 15] and again.anchors.foreground == 20
        for key in ("number", "settings"):
            assert getattr(again.anchors, key) == getattr(statistics.anchors, key)
    else:
        assert again.anchors is None
    assert [one.name for one in tmp_path.iterdir()] == ["statistics.json"]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "longtail_det2.concurrent_rates"),
        (("version",), 2),
        (("num_images",), -3),
        (("parents",), ["dog"]),
        (("parents", "dog"), 5),
        (("parents", "dog"), ["nothing"]),
        (("parents", "animal"), ["dog"]),
        (("classes",), []),
        (("classes",), {"a": 1}),
        (("classes", 1), "dog"),
        (("classes", 1), {"id": "dog"}),
        (("classes", 1, "id"), "animal"),
        (("classes", 1, "id"), ["dog"]),
        (("classes", 1, "id"), None),
        (("classes", 1, "images"), True),
        (("classes", 1, "images"), 2**60),
        (("classes", 1, "instances"), 2.0),
        (("classes", 1, "positive_anchors"), 21),
        (("classes", 1, "positive_anchors"), 1.0),
        (("classes", 1, "positive_anchors"), None),
        (("anchors",), None),
        (("anchors",), [20, 50]),
        (("anchors",), {"number": 50, "foreground": 20}),
        (("anchors", "number"), 19),
        (("anchors", "number"), True),
        (("anchors", "foreground"), -1),
        (("anchors", "foreground"), 14),
        (("anchors", "settings"), ["DATASETS.TRAIN"]),
        (("classes", 1, "cooccurrence"), None),
        (("classes", 1, "cooccurrence"), [1]),
        (("classes", 1, "cooccurrence", "nothing"), 1),
        (("classes", 1, "cooccurrence", "car"), 4),
        (("classes", 1, "cooccurrence", "car"), -1),
        (("classes", 1, "cooccurrence", "car"), "3"),
        (("classes", 1, "cooccurrence", "dog"), 2),
    ],
)
def test_damaged_files_are_refused(tmp_path, keys, value):
    path = tmp_path / "statistics.json"
    write_statistics(path, some_statistics())
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_statistics(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_of_other_classes_cut_or_absent_or_that_cannot_be_written(tmp_path):
    path = tmp_path / "statistics.json"
    write_statistics(path, some_statistics())
    for ids in (CLASS_IDS[::-1], CLASS_IDS[:5], [*CLASS_IDS, "bus"], [*CLASS_IDS[:5], "bus"]):
        with pytest.raises(DataError, match=r"statistics\.json"):
            read_statistics(path, ids)
    path.write_bytes(path.read_bytes()[:-30])
    for bad in (path, tmp_path, tmp_path / "absent.json"):
        with pytest.raises(DataError, match=str(bad)):
            read_statistics(bad)
    with pytest.raises(DataError, match="absent"):
        write_statistics(tmp_path / "absent" / "a.json", some_statistics())


@pytest.mark.parametrize(
    "arrays",
    [
        {"image_counts": [1, 2, 3]},
        {"instance_counts": [[1, 2]]},
        {"image_counts": [1, -1]},
        {"cooccurrence": np.ones((2, 3))},
        {"cooccurrence": [[1, 2], [2, 2]]},
        {"cooccurrence": [[2, 1], [0, 2]]},
        {"anchors": AnchorStatistics([1, 2, 3], 4, 5, {})},
    ],
)
def test_arrays_that_cannot_be_are_refused(arrays):
    with pytest.raises(DataError, match="co-occurrence"):
        ClassStatistics(("a",), 1, [1], [1]).rates()
    for counts in (([1, -1], 3, 5), ([4], 3, 5), ([6], 6, 5), ([1, 0], 2, 5), ([[1]], 3, 5), ([1], 1, 2**60)):
        with pytest.raises(DataError, match="anchors"):
            AnchorStatistics(*counts, {})
    with pytest.raises(DataError):
        ClassStatistics("ab", 3, **{"image_counts": [1, 2], "instance_counts": [2, 3], **arrays})


def test_bins():
    """Thirds of the classes; by thresholds as COCO-MLT and VOC-MLT split: head from 100, tail below 20."""
    assert frequency_bins(np.array([5, 100, 1, 50, 20, 2])).tolist() == [1, 0, 2, 0, 1, 2]
    assert frequency_bins(np.array([5, 4, 3, 2, 1])).tolist() == [0, 0, 1, 1, 2]
    assert frequency_bins(np.full(6, 7)).tolist() == [0, 0, 1, 1, 2, 2]
    assert frequency_bins(np.array([2, 1, 3]), ()).tolist() == [1, 2, 0]
    assert frequency_bins(np.zeros(0)).tolist() == []
    counts = np.array([0, 1, 19, 20, 21, 99, 100, 101])
    assert frequency_bins(counts, (20, 100)).tolist() == [2, 2, 2, 1, 1, 1, 0, 0]
    assert frequency_bins(np.array([3, 0, 0, 0, 0, 0])).tolist() == [0, 2, 2, 2, 2, 2]
    assert frequency_bins(np.array([0, 5]), (-1, 3)).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("counts", "thresholds"),
    [([1, 2], one) for one in ((100, 10), (1, 2, 3), (5,), (float("nan"), 1))]
    + [(one, None) for one in ([-1, 2], [[1]], [np.nan])],
)
def test_bins_refuse_bad_counts_and_thresholds(counts, thresholds):
    with pytest.raises(ConfigError):
        frequency_bins(np.array(counts), thresholds)
