"""Concurrent rates: counts against loops over objects, readings, files."""

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from statistics_stores import CLASS_IDS, GROUP_OF, PARENTS, Picture, build_store, crowded_pictures

from longtail_det2.data import concurrent_counts, overlaps
from longtail_det2.data.category_statistics import stores_of
from longtail_det2.data.concurrent_counts import count_concurrent
from longtail_det2.data.concurrent_rates import ConcurrentRates, RateOptions, concurrent_rates_of
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.overlaps import near_pairs
from longtail_det2.data.store import write_store
from longtail_det2.utils.errors import ConfigError, DataError

ANIMAL, DOG, PUPPY, PET, FISH, CAR = range(6)
OPTIONS = [
    RateOptions(explicit, hierarchy, iou, group_of)
    for explicit, hierarchy, iou, group_of in itertools.product(
        (True, False), (True, False), (None, 0.3, 0.8), ("drop", "keep")
    )
    if explicit or hierarchy or iou
]


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def slow_counts(store, options):
    """The equations of the module as loops."""
    above = {label: {label} for label in range(store.num_classes)}
    if options.hierarchy:
        above = {label: {label, *store.hierarchy.ancestors_of(label).tolist()} for label in above}
    objects = np.zeros(store.num_classes, int)
    pairs = np.zeros((store.num_classes, store.num_classes), int)
    for image in range(len(store)):
        members = []
        for row in range(*store.object_offsets[image : image + 2].tolist()):
            group = bool(store.flags[row] & GROUP_OF)
            labels = store.labels[slice(*store.label_offsets[row : row + 2])].tolist()
            if labels and (options.group_of == "keep" or not group):
                members.append((store.boxes[row].astype(float).tolist(), group, labels))
        borne = [set().union(*(above[label] for label in labels)) for _, _, labels in members]
        for number, (box, group, labels) in enumerate(members):
            evidence = {pair for label in labels for pair in itertools.product(above[label], repeat=2)}
            if options.explicit:
                evidence |= set(itertools.product(borne[number], repeat=2))
            for other, (other_box, other_group, _) in enumerate(members):
                near = options.implicit_iou and iou(box, other_box) >= options.implicit_iou
                if near and other != number and group == other_group:
                    evidence |= set(itertools.product(borne[number], borne[other]))
            for label in borne[number]:
                objects[label] += 1
            for i, j in evidence:
                pairs[i, j] += i != j
    return objects, pairs


def count(store, options):
    hierarchy = store.hierarchy if options.hierarchy else LabelHierarchy.flat(store.class_ids)
    return count_concurrent(
        store,
        explicit=options.explicit,
        hierarchy=hierarchy,
        implicit_iou=options.implicit_iou,
        with_groups=options.group_of == "keep",
    )


@pytest.fixture
def make_store(tmp_path):
    return partial(build_store, tmp_path)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowded")
    return [build_store(folder, crowded_pictures(seed), name=f"store{seed}") for seed in range(3)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_counts_as_loops_find_them(crowded, options):
    for store in crowded:
        objects, pairs = count(store, options)
        expected = slow_counts(store, options)
        np.testing.assert_array_equal(objects, expected[0])
        np.testing.assert_array_equal(pairs, expected[1])
        assert objects.dtype == pairs.dtype == np.int64
    assert any(count(store, options)[1].any() for store in crowded)


def test_every_part_adds_evidence(crowded):
    """So that the oracle's test says something about each part."""
    base = RateOptions(hierarchy=False)
    wider = [RateOptions(hierarchy=False, implicit_iou=0.8), RateOptions(hierarchy=False, implicit_iou=0.3)]
    sums = [count(crowded[0], options)[1].sum() for options in (base, *wider)]
    assert 0 < sums[0] < sums[1] < sums[2]
    assert count(crowded[0], RateOptions(explicit=False))[1].sum() < count(crowded[0], RateOptions())[1].sum()


def test_chunks_and_codes_change_nothing(crowded, monkeypatch):
    expected = [count(crowded[0], options) for options in OPTIONS]
    monkeypatch.setattr(concurrent_counts, "_CHUNK", 5)
    monkeypatch.setattr(concurrent_counts, "_DENSE_CODES", 7)
    monkeypatch.setattr(overlaps, "_CHUNK", 4)
    for options, (objects, pairs) in zip(OPTIONS, expected, strict=True):
        found = count(crowded[0], options)
        np.testing.assert_array_equal(found[0], objects)
        np.testing.assert_array_equal(found[1], pairs)


def test_objects_with_very_many_labels(make_store):
    """Sets of more labels than fit into one 64-bit code."""
    generator = np.random.default_rng(0)
    ids = [f"c{index}" for index in range(300)]
    labels = [sorted(generator.choice(300, 12, replace=False).tolist()) for _ in range(20)]
    objects = [((0, 0, 1 + n, 2), labels[n % 20][:: 1 if n % 2 else -1], 0) for n in range(30)]
    store = make_store([Picture("a", objects)], ids, None)
    for options in (RateOptions(), RateOptions(hierarchy=False, explicit=False, implicit_iou=0.6)):
        for found, expected in zip(count(store, options), slow_counts(store, options), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_rates_are_conditional_on_the_row(make_store):
    """Three dogs, one of them also a fish; two animals of no known kind."""
    objects = [([DOG], 3), ([FISH, DOG], 1), ([ANIMAL], 2), ([CAR], 1)]
    pictures = [
        Picture(f"{n}{k}", [((0, 0, 5, 5), labels, 0)])
        for n, (labels, times) in enumerate(objects)
        for k in range(times)
    ]
    rates = ConcurrentRates.of_stores([make_store(pictures)])
    r = rates.rates
    assert rates.class_ids == tuple(CLASS_IDS) and rates.objects.tolist() == [6, 4, 0, 4, 1, 1]
    assert r[DOG, ANIMAL] == r[DOG, PET] == r[FISH, PET] == 1
    assert r[ANIMAL, DOG] == 4 / 6 and r[PET, DOG] == 1
    assert r[FISH, DOG] == 1 and r[DOG, FISH] == 1 / 4 and r[FISH, ANIMAL] == 1
    assert not r[CAR].any() and not r[:, CAR].any() and not r.diagonal().any()
    # A puppy is an animal by definition, though no puppy was seen.
    assert r[PUPPY].tolist() == [1, 1, 0, 1, 0, 0]
    flat = ConcurrentRates.of_stores([make_store(pictures, name="again")], RateOptions(hierarchy=False))
    assert np.argwhere(flat.rates).tolist() == [[DOG, FISH], [FISH, DOG]]
    assert flat.rates[DOG, FISH] == 1 / 4 and flat.objects.tolist() == [2, 4, 0, 0, 1, 1]


def test_readings(make_store):
    pictures = crowded_pictures(5)
    rates = ConcurrentRates.of_stores([make_store(pictures)])
    given_row, given_column = rates.read(), rates.read("given_column")
    np.testing.assert_array_equal(given_row, rates.rates.astype(np.float32))
    np.testing.assert_array_equal(given_column, given_row.T)
    np.testing.assert_array_equal(rates.read("maximum"), np.maximum(given_row, given_row.T))
    assert given_row[DOG, ANIMAL] == 1 > given_row[ANIMAL, DOG] == given_column[DOG, ANIMAL]
    for one in (given_row, given_column):
        assert one.dtype == np.float32 and one.flags.c_contiguous and one.flags.writeable
    with pytest.raises(ConfigError, match="'rows' is none of given_row, given_column, maximum"):
        rates.read("rows")


def test_group_of_boxes_count_only_on_request(make_store):
    box, near = (0, 0, 10, 10), (0, 0, 10, 9)
    group = Picture("a", [(box, [DOG, CAR], GROUP_OF), (near, [FISH], 0)])
    store = make_store([group])
    overlapping = RateOptions(hierarchy=False, implicit_iou=0.5)
    dropped = ConcurrentRates.of_stores([store], overlapping)
    assert not dropped.rates.any() and dropped.objects.tolist() == [0, 0, 0, 0, 1, 0]
    kept = ConcurrentRates.of_stores([store], RateOptions(False, False, 0.5, "keep"))
    assert not kept.rates.any(), "a group and a single object lend each other nothing"
    kept = ConcurrentRates.of_stores([store], RateOptions(True, False, 0.5, "keep"))
    assert np.argwhere(kept.rates).tolist() == [[DOG, CAR], [CAR, DOG]]


def test_one_class_and_no_objects(make_store):
    single = ConcurrentRates.of_stores(
        [make_store([Picture("a", [((0, 0, 5, 5), [0], 0)] * 2)], ["only"], None)],
        RateOptions(implicit_iou=0.5),
    )
    assert single.rates.tolist() == [[0]] and single.objects.tolist() == [2]
    for name, pictures in (("none", []), ("bare", [Picture("a"), Picture("b")])):
        empty = ConcurrentRates.of_stores([make_store(pictures, name=name)], RateOptions(implicit_iou=0.5))
        np.testing.assert_array_equal(empty.rates, LabelHierarchy.from_parents(PARENTS, CLASS_IDS).ancestors)
        assert not empty.objects.any()


def test_several_stores_count_together(crowded):
    options = RateOptions(implicit_iou=0.5)
    together = ConcurrentRates.of_stores(crowded, options)
    counts = [count(store, options) for store in crowded]
    objects, pairs = sum(one for one, _ in counts), sum(one for _, one in counts)
    np.testing.assert_array_equal(together.objects, objects)
    np.testing.assert_array_equal(together.rates, pairs / objects[:, None])
    assert together.sources == tuple(str(store.path) for store in crowded)


def test_stores_that_do_not_go_together(make_store):
    first = make_store(crowded_pictures(0))
    other_classes = make_store([], [*CLASS_IDS[:4], "shark", "car"], {}, name="other")
    with pytest.raises(DataError, match=r"class 4 is 'fish' in .*store but 'shark' in .*other"):
        ConcurrentRates.of_stores([first, other_classes])
    other_tree = make_store(crowded_pictures(1), parents={"dog": ["pet"]}, name="tree")
    with pytest.raises(DataError, match="different hierarchies"):
        ConcurrentRates.of_stores([first, other_tree])
    ConcurrentRates.of_stores([first, other_tree], RateOptions(hierarchy=False))
    with pytest.raises(DataError, match="nothing to count"):
        ConcurrentRates.of_stores([])


def test_registered_data_sets(make_store, request):
    names = ["rates_first", "rates_second", "rates_list"]
    request.addfinalizer(lambda: [(DatasetCatalog.pop(n, None), MetadataCatalog.pop(n, None)) for n in names])
    stores = [make_store(crowded_pictures(seed), name=f"s{seed}") for seed in range(2)]
    for name, store in zip(names, stores, strict=False):
        register_store(name, store.path)
    DatasetCatalog.register(names[2], list)
    rates = concurrent_rates_of(names[:2], RateOptions(group_of="keep"))
    expected = ConcurrentRates.of_stores(stores, RateOptions(group_of="keep"))
    np.testing.assert_array_equal(rates.rates, expected.rates)
    assert rates.sources == ("rates_first", "rates_second") and rates.options["group_of"] == "keep"
    np.testing.assert_array_equal(
        concurrent_rates_of("rates_first").rates, ConcurrentRates.of_stores(stores[:1]).rates
    )
    with pytest.raises(DataError, match="'rates_list' is no annotation store"):
        concurrent_rates_of(names)
    with pytest.raises(DataError, match=r"unknown data set 'rates_frist' .do you mean 'rates_first'"):
        concurrent_rates_of("rates_frist")
    with pytest.raises(DataError, match="no data set is named"):
        stores_of([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"implicit_iou": 0.0}, r"implicit_iou must be in \(0, 1\], got 0.0"),
        ({"implicit_iou": float("nan")}, "got nan"),
        ({"group_of": "both"}, "'drop' or 'keep', not 'both'"),
        ({"explicit": False, "hierarchy": False}, "would all be 0"),
    ],
)
def test_options_out_of_range(values, message):
    with pytest.raises(ConfigError, match=message):
        RateOptions(**values)


def test_damaged_labels(make_store):
    store = make_store(crowded_pictures(0))
    np.save(store.path / "label.npy", np.where(np.arange(len(store.labels)) == 3, 6, store.labels))
    with pytest.raises(DataError, match="labels that are no classes"):
        ConcurrentRates.of_stores([type(store).open(store.path)])


def test_file_keeps_everything(crowded, tmp_path):
    rates = ConcurrentRates.of_stores(crowded, RateOptions(implicit_iou=0.5), ["a", "b", "ü"])
    path = tmp_path / "rates.json"
    rates.save(path)
    again = ConcurrentRates.load(path)
    np.testing.assert_array_equal(again.rates, rates.rates)
    np.testing.assert_array_equal(again.objects, rates.objects)
    for name in ("class_ids", "class_names", "options", "sources"):
        assert getattr(again, name) == getattr(rates, name)
    again.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["rates.json"]
    np.testing.assert_array_equal(ConcurrentRates.load(str(path)).rates, rates.rates)


def test_file_can_be_read_by_people(make_store, tmp_path):
    path = tmp_path / "rates.json"
    objects = [((0, 0, 5, 5), labels, 0) for labels in ([DOG], [DOG], [DOG, CAR], [DOG, CAR], [DOG, FISH])]
    ConcurrentRates.of_stores([make_store([Picture("a", objects)])], RateOptions(hierarchy=False)).save(path)
    content = json.loads(path.read_text())
    assert content["direction"] == "given_row" and "P(j | i)" in content["meaning"]
    assert content["options"] == {
        "explicit": True,
        "hierarchy": False,
        "implicit_iou": None,
        "group_of": "drop",
    }
    assert (
        '  {"id": "dog", "name": "dog", "objects": 5, "rates": {"car": 0.4, "fish": 0.2}},\n'
        in path.read_text()
    )


def document():
    ids = ["a", "b", "c"]
    classes = [{"id": one, "name": one.upper(), "objects": 4, "rates": {}} for one in ids]
    classes[0]["rates"] = {"b": 0.5, "c": 1}
    head = {"format": "longtail_det2.concurrent_rates", "version": 1, "direction": "given_row"}
    return {**head, "options": {}, "sources": [], "classes": classes}


def changed(*keys_and_value):
    content = document()
    *keys, last, value = keys_and_value
    place = content
    for key in keys:
        place = place[key]
    place[last] = value
    return json.dumps(content)


HOSTILE = {
    "empty": ("", "not a JSON file"),
    "no JSON": ("{'a': 1}", "not a JSON file"),
    "cut off": (json.dumps(document())[:-9], "not a JSON file"),
    "deep": ("[" * 100_000, "not a JSON file"),
    "long number": ('{"version": ' + "9" * 5000 + "}", "not a JSON file"),
    "list": ("[]", "is not a JSON object"),
    "format": (changed("format", "something"), "format 'something' is not 'longtail_det2.concurrent_rates'"),
    "no format": ("{}", "format None"),
    "version": (changed("version", 2), "version 2, this package reads 1; make the file again"),
    "true version": (changed("version", True), "version True"),
    "direction": (changed("direction", "given_column"), "direction 'given_column' is not 'given_row'"),
    "options": (changed("options", [1]), "'options' is not an object"),
    "sources": (changed("sources", [1]), "'sources' is not a list of strings"),
    "no classes": (changed("classes", []), "'classes' is not a list of at least one class"),
    "class": (changed("classes", 1, 7), "class 1 has no 'id'"),
    "id": (changed("classes", 1, "id", 7), "class 1 has no 'id'"),
    "repeated id": (changed("classes", 1, "id", "a"), "class 1 has the id 'a' of an earlier class"),
    "name": (changed("classes", 1, "name", ["B"]), "class 'b' has a 'name' that is no string"),
    "no rates": (changed("classes", 1, "rates", [0, 1]), "class 'b' has no 'rates'"),
    "unknown class": (
        changed("classes", 1, "rates", {"d": 1}),
        "class 'b' has a rate of 'd', which is no class",
    ),
    "above 1": (changed("classes", 1, "rates", {"c": 1.5}), "rate of 'c' given 'b' is 1.5, no number in"),
    "below 0": (changed("classes", 1, "rates", {"c": -0.1}), "rate of 'c' given 'b' is -0.1, no number in"),
    "not a number": (changed("classes", 1, "rates", {"c": float("nan")}), "rate of 'c' given 'b' is nan"),
    "infinite": (changed("classes", 1, "rates", {"c": float("inf")}), "rate of 'c' given 'b' is inf"),
    "huge": (changed("classes", 1, "rates", {"c": 10**400}), "rate of 'c' given 'b' is 1000"),
    "text": (changed("classes", 1, "rates", {"c": "a\nb"}), r"rate of 'c' given 'b' is 'a\\nb'"),
    "truth": (changed("classes", 1, "rates", {"c": True}), "rate of 'c' given 'b' is True"),
    "itself": (
        changed("classes", 1, "rates", {"b": 1}),
        "'b' has a rate with itself; the diagonal must be 0",
    ),
    "objects": (changed("classes", 1, "objects", -1), "class 'b': 'objects' is -1, not a whole number >= 0"),
    "many objects": (changed("classes", 1, "objects", 10**30), "class 'b': 'objects' is 1000"),
    "broken objects": (changed("classes", 1, "objects", 1.5), "class 'b': 'objects' is 1.5"),
}


def test_the_unchanged_document_is_read(tmp_path):
    """So that each hostile file is hostile because of its one change."""
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(document()))
    rates = ConcurrentRates.load(path)
    assert rates.rates.tolist() == [[0, 0.5, 1], [0, 0, 0], [0, 0, 0]]
    assert rates.class_names == ("A", "B", "C") and rates.objects.tolist() == [4, 4, 4]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, tmp_path):
    text, message = HOSTILE[case]
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        ConcurrentRates.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "rates.json"
    path.write_bytes(b"\x80\xff\x00")
    with pytest.raises(DataError, match="not a JSON file"):
        ConcurrentRates.load(path)
    with pytest.raises(DataError, match=r"no such file; make it with scripts/category_statistics\.py"):
        ConcurrentRates.load(tmp_path / "absent.json")
    with pytest.raises(DataError, match="cannot be read"):
        ConcurrentRates.load(tmp_path)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (np.zeros((2, 3)), r"rates have shape \(2, 3\), but 2 classes"),
        (np.zeros((3, 3)), r"rates have shape \(3, 3\), but 2 classes"),
        (np.zeros(4), r"rates have shape \(4,\)"),
        ([[0, 1.01], [0, 0]], "rate of 'b' given 'a' is 1.01, not in"),
        ([[0, 1], [np.nan, 0]], "rate of 'a' given 'b' is nan"),
        ([[0, 1], [0, 1]], "'b' has a rate with itself"),
    ],
)
def test_rates_made_by_hand(rates, message):
    with pytest.raises(DataError, match=message):
        ConcurrentRates(rates, ("a", "b"))


def test_rates_by_hand_need_no_counts(tmp_path):
    given = np.array([[0, 0.25], [1, 0]])
    rates = ConcurrentRates(given, ("a", "b"))
    given[0, 1] = 7
    assert rates.rates[0, 1] == 0.25 and rates.class_names == ("a", "b") and rates.objects.tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        rates.rates[0, 1] = 1
    rates.save(tmp_path / "rates.json")
    np.testing.assert_array_equal(ConcurrentRates.load(tmp_path / "rates.json").rates, rates.rates)
    with pytest.raises(DataError, match="2 classes, but 1 names"):
        ConcurrentRates(rates.rates, ("a", "b"), ("A",))


def test_other_classes_are_refused(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(document()))
    rates = ConcurrentRates.load(path)
    rates.check_classes(["a", "b", "c"], "shapes_train")
    with pytest.raises(DataError, match=r"class 1 is 'b' in .*rates\.json but 'x' in shapes_train"):
        rates.check_classes(["a", "x", "c"], "shapes_train")
    with pytest.raises(DataError, match=r"rates\.json has 3 classes but shapes_train has 2"):
        rates.check_classes(["a", "b"], "shapes_train")


def test_a_file_that_cannot_be_written(tmp_path):
    rates = ConcurrentRates([[0.0]], ("a",))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent" / "rates.json", tmp_path / "file" / "rates.json"):
        with pytest.raises(DataError, match="cannot be written"):
            rates.save(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        rates.save(tmp_path / "folder")
    with pytest.raises(DataError, match="is no text"):
        ConcurrentRates([[0.0]], ("\ud800",)).save(tmp_path / "rates.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rates.json"
    ConcurrentRates([[0.0]], ("old",)).save(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DataError, match="No space left"):
        ConcurrentRates([[0.0]], ("new",)).save(path)
    assert ConcurrentRates.load(path).class_ids == ("old",)
    assert [one.name for one in tmp_path.iterdir()] == ["rates.json"]


@pytest.mark.parametrize("scale", [1, 40], ids=["shares", "pixels"])
@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_as_loops_find_them(seed, scale, monkeypatch):
    """Boxes in any order, of images of any size, in any unit, with equal and empty boxes among them."""
    generator = np.random.default_rng(seed)
    image = np.sort(generator.integers(0, 12, 150))
    corner = generator.choice([0.0, 0.2, 0.21, 0.5], (150, 2))
    box = np.concatenate([corner, corner + generator.choice([0.0, 0.3, 0.3, 0.4], (150, 2))], axis=1)
    box *= scale
    kind = generator.integers(0, 2, 150)
    monkeypatch.setattr(overlaps, "_CHUNK", int(generator.integers(5, 100)))
    for least in (0.2, 0.6, 1.0):
        first, second, values = near_pairs(image, box.astype(np.float32), least, kind)
        expected = {
            (a, b): iou(box[a].astype(np.float32).tolist(), box[b].astype(np.float32).tolist())
            for a, b in itertools.combinations(range(150), 2)
            if image[a] == image[b] and kind[a] == kind[b]
        }
        expected = {pair: value for pair, value in expected.items() if value >= least}
        found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), values.tolist(), strict=True))
        assert len(found) == len(first) >= (least < 1) and found == pytest.approx(expected)


def test_golden_hierarchy_of_open_images(shared_dir, tmp_path):
    """The real DAG: one object of each class; each bears its ancestors."""
    folder = Path(shared_dir) / "data" / "openimages"
    ids = [
        line.split(",")[0] for line in (folder / "challenge-2019-classes-500.csv").read_text().splitlines()
    ]
    tree = LabelHierarchy.from_json(folder / "derived-500-hierarchy.json", ids, unlisted="contract")
    num = len(ids)
    columns = {
        "image_id": np.array([f"{index:03d}" for index in range(num)]),
        "file_name": np.array([f"{index:03d}.jpg" for index in range(num)]),
        "image_size": np.full((num, 2), 9),
        "object_offsets": np.arange(num + 1),
        "box": np.tile(np.array([[0, 0, 1, 1]], np.float32), (num, 1)),
        "flags": np.zeros(num, np.uint8),
        "label_offsets": np.arange(num + 1),
        "label": np.arange(num),
        "image_label_offsets": np.zeros(num + 1, np.int64),
        "image_label": np.zeros(0, np.int64),
        "image_label_status": np.zeros(0, np.uint8),
    }
    store = write_store(tmp_path / "store", columns, ids, parents=tree.to_parents())
    rates = ConcurrentRates.of_stores([store], RateOptions(explicit=False))
    assert (rates.rates[tree.ancestors] == 1).all()
    np.testing.assert_array_equal(rates.objects, 1 + tree.descendants.sum(axis=1))
    np.testing.assert_array_equal(rates.rates.T[tree.ancestors] > 0, True)
    rates.save(tmp_path / "rates.json")
    np.testing.assert_array_equal(ConcurrentRates.load(tmp_path / "rates.json").rates, rates.rates)
