"""Class frequencies: counts, files, the numbers of the long tail, and the script."""

import csv
import importlib.util
import json
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
import pytest
from PIL import Image
from statistics_stores import CLASS_IDS, Picture, build_store, crowded_pictures

from longtail_det2.data.category_statistics import CategoryStatistics, category_statistics_of, long_tail
from longtail_det2.data.concurrent_rates import ConcurrentRates, RateOptions
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.statistics import frequency_bins
from longtail_det2.data.store import AnnotationStore
from longtail_det2.utils.errors import ConfigError, DataError

ANIMAL, DOG, PUPPY, PET, FISH, CAR = range(6)


@pytest.fixture
def make_store(tmp_path):
    return partial(build_store, tmp_path)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    return build_store(tmp_path_factory.mktemp("crowded"), crowded_pictures(0))


def slow_counts(store, expanded):
    images, objects = (np.zeros(store.num_classes, int) for _ in range(2))
    for image in range(len(store)):
        seen = set()
        for row in range(*store.object_offsets[image : image + 2].tolist()):
            labels = set(store.labels[slice(*store.label_offsets[row : row + 2])].tolist())
            if expanded:
                labels = labels.union(*(store.hierarchy.ancestors_of(label).tolist() for label in labels))
            objects[list(labels)] += 1
            seen |= labels
        images[list(seen)] += 1
    return images, objects


def test_counts_as_loops_find_them(crowded):
    statistics = CategoryStatistics.of_stores([crowded])
    for expanded in (False, True):
        images, objects = slow_counts(crowded, expanded)
        np.testing.assert_array_equal(statistics.counts("images", expanded=expanded), images)
        np.testing.assert_array_equal(statistics.counts("objects", expanded=expanded), objects)
    assert statistics.counts() is statistics.images_expanded
    assert (statistics.num_images, statistics.num_objects) == (len(crowded), crowded.num_objects)
    assert statistics.class_ids == tuple(CLASS_IDS) and statistics.sources == (str(crowded.path),)


def test_several_data_sets_count_together(make_store, request):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names = ["statistics_first", "statistics_second"]
    request.addfinalizer(lambda: [(DatasetCatalog.pop(n, None), MetadataCatalog.pop(n, None)) for n in names])
    stores = [make_store(crowded_pictures(seed), name=f"s{seed}") for seed in range(2)]
    for name, store in zip(names, stores, strict=True):
        register_store(name, store.path)
    together = category_statistics_of(names)
    single = [category_statistics_of(name) for name in names]
    for key in ("images", "objects", "images_expanded", "objects_expanded", "num_images", "num_objects"):
        np.testing.assert_array_equal(getattr(together, key), sum(getattr(one, key) for one in single))
    assert together.sources == tuple(names)
    other = make_store([], ["x", *CLASS_IDS[1:]], {}, name="other")
    with pytest.raises(DataError, match=r"class 0 is 'animal' in .* but 'x' in "):
        CategoryStatistics.of_stores([stores[0], other])


def test_file_keeps_everything(crowded, tmp_path):
    statistics = CategoryStatistics.of_stores([crowded], ["ünï"])
    path = tmp_path / "statistics.json"
    statistics.save(path)
    again = CategoryStatistics.load(path)
    for key in ("images", "objects", "images_expanded", "objects_expanded"):
        np.testing.assert_array_equal(getattr(again, key), getattr(statistics, key))
        assert getattr(again, key).dtype == np.int64
    for key in ("class_ids", "class_names", "num_images", "num_objects", "sources"):
        assert getattr(again, key) == getattr(statistics, key)
    again.check_classes(CLASS_IDS, "the data")
    with pytest.raises(DataError, match=r"class 5 is 'car' in .*statistics\.json but 'bus' in the data"):
        again.check_classes([*CLASS_IDS[:5], "bus"], "the data")
    assert [one.name for one in tmp_path.iterdir()] == ["statistics.json"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), "longtail_det2.concurrent_rates", "format 'longtail_det2.concurrent_rates' is not"),
        (("version",), "1", "version '1', this package reads 1"),
        (("num_images",), -3, "'num_images' is -3, not a whole number"),
        (("num_objects",), None, "'num_objects' is None"),
        (("classes", 1, "objects"), 2.0, r"class 'dog': 'objects' is 2\.0, not a whole number"),
        (("classes", 1, "images_expanded"), True, "class 'dog': 'images_expanded' is True"),
        (("classes", 1, "images"), 2**60, "class 'dog': 'images' is 1152921504606846976"),
        (("classes", 1), {"id": "dog"}, "class 'dog': 'images' is None"),
        (("sources",), "a", "'sources' is not a list of strings"),
    ],
)
def test_hostile_files(crowded, tmp_path, keys, value, message):
    path = tmp_path / "statistics.json"
    CategoryStatistics.of_stores([crowded]).save(path)
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        CategoryStatistics.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [[7], [5, 5, 5], [9, 0, 3, 1], [1000, 100, 10, 1, 0, 0], [0, 8]])
def test_numbers_of_the_long_tail(counts):
    tail = long_tail(np.array(counts))
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert tail.gini == pytest.approx(differences / (2 * len(counts) * sum(counts)))
    occurring = [one for one in counts if one]
    assert (tail.most, tail.least) == (max(occurring), min(occurring))
    assert tail.imbalance == max(occurring) / min(occurring)
    assert tail.num_empty == counts.count(0)
    np.testing.assert_array_equal(tail.groups, frequency_bins(np.array(counts)))
    facts = tail.group_facts()
    assert [name for name, _, _ in facts] == ["head", "medium", "tail"]
    assert sum(size for _, size, _ in facts) == len(counts)
    assert sum(share for _, _, share in facts) == pytest.approx(1)


def test_limits_of_gini():
    assert long_tail(np.full(9, 4)).gini == 0
    assert long_tail(np.array([0, 0, 0, 5])).gini == pytest.approx(1 - 1 / 4)


def test_groups_by_thresholds():
    facts = long_tail(np.array([500, 60, 40, 0]), (50, 100)).group_facts()
    assert [(name, size) for name, size, _ in facts] == [("head", 1), ("medium", 1), ("tail", 2)]
    assert facts[2][2] == pytest.approx(40 / 600)
    with pytest.raises(ConfigError, match="low <= high"):
        long_tail(np.array([1]), (5, 2))


def test_nothing_to_count():
    empty = long_tail(np.zeros(3, int))
    assert (empty.num_empty, empty.most, empty.least) == (3, 0, 0)
    assert np.isnan(empty.gini) and np.isnan(empty.imbalance)
    assert [share for _, _, share in empty.group_facts()] == [0, 0, 0]
    with pytest.raises(ConfigError, match="no classes"):
        long_tail(np.zeros(0, int))


# The script


@pytest.fixture(scope="module")
def main(repository):
    spec = importlib.util.spec_from_file_location(
        "category_statistics", repository / "scripts" / "category_statistics.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def concurring_store(make_store, name="store"):
    """Ten times a dog that is also a car, four times a dog alone, ten fish of which two overlap a car."""
    box, away = (0, 0, 20, 20), (30, 30, 38, 38)
    objects = [*[[(box, [DOG, CAR], 0)]] * 10, *[[(box, [DOG], 0)]] * 4]
    objects += [*[[(box, [FISH], 0), ((0, 0, 20, 18), [CAR], 0)]] * 2]
    objects += [*[[(box, [FISH], 0), (away, [CAR], 0)]] * 8]
    return make_store([Picture(f"{n:02d}", one) for n, one in enumerate(objects)], name=name)


def test_script_writes_and_prints(main, make_store, tmp_path, capsys):
    store = concurring_store(make_store)
    out = tmp_path / "out" / "statistics"
    command = ["--store", str(store.path), "--output", str(out)]
    assert main([*command, "--implicit-iou", "0.8"]) == 0
    printed = capsys.readouterr().out
    assert "24 images, 34 objects, 6 classes, 1 of them without images" in printed
    assert "24 of 'pet' to 10 of 'fish' (2.4 : 1)" in printed
    # A dog is an animal and a pet, and a fish is a pet: that goes without saying.
    pairs = [line.strip() for line in printed.splitlines() if line.startswith("  P(")]
    assert pairs[0] == "P(car | animal) = 0.714  (10 of 14 objects)"
    assert "P(car | fish) = 0.200  (2 of 10 objects)" in pairs
    assert "P(car | dog) = 0.714  (10 of 14 objects)" in pairs
    assert not any("puppy" in line for line in pairs) and len(pairs) == 8
    assert sorted(file.name for file in out.iterdir()) == [
        "category_statistics.json",
        "concurrent_rates.json",
        "concurrent_rates.png",
        "long_tail.png",
    ]
    rates = ConcurrentRates.load(out / "concurrent_rates.json")
    np.testing.assert_array_equal(
        rates.rates, ConcurrentRates.of_stores([store], RateOptions(implicit_iou=0.8)).rates
    )
    assert CategoryStatistics.load(out / "category_statistics.json").images.tolist() == [0, 14, 0, 0, 10, 20]
    for name in ("concurrent_rates.png", "long_tail.png"):
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_script_options(main, make_store, tmp_path, capsys):
    store = concurring_store(make_store)
    out = tmp_path / "out"
    command = ["--store", str(store.path), "--output", str(out), "--format", "svg"]
    assert main([*command, "--no-hierarchy", "--strongest", "1", "--thresholds", "5", "12"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("P(") == 1 and "P(car | dog) = 0.714" in printed
    assert "co-labels, without group-of boxes: 2 pairs above 0, 2 of them beyond the hierarchy" in printed
    assert [line.split()[:2] for line in printed.splitlines()[2:5]] == [
        ["head", "4"],
        ["medium", "1"],
        ["tail", "1"],
    ]
    for name in ("concurrent_rates.svg", "long_tail.svg"):
        assert ET.parse(out / name).getroot().tag.endswith("svg")
    assert main([*command, "--no-explicit", "--count", "objects", "--least-objects", "0"]) == 0
    printed = capsys.readouterr().out
    assert "P(" not in printed and "objects with a class or its descendants: 24 of 'pet'" in printed
    assert ConcurrentRates.load(out / "concurrent_rates.json").options["explicit"] is False


def test_script_counts_data_sets_together(main, make_store, tmp_path, capsys):
    stores = [concurring_store(make_store, f"store{n}") for n in range(2)]
    names = [f"{tmp_path.name}_{n}" for n in range(2)]
    entries = ",".join(f"{name}={store.path}" for name, store in zip(names, stores, strict=True))
    datasets = [word for name in names for word in ("--dataset", name)]
    command = [*datasets, "--output", str(tmp_path / "out"), "DATASETS.STORES", entries]
    assert main(command) == 0
    assert f"{', '.join(names)}: 48 images, 68 objects" in capsys.readouterr().out
    together = [word for store in stores for word in ("--store", str(store.path))]
    assert main([*together, "--output", str(tmp_path / "again")]) == 0
    one, other = (
        ConcurrentRates.load(tmp_path / name / "concurrent_rates.json") for name in ("out", "again")
    )
    np.testing.assert_array_equal(one.rates, other.rates)
    assert one.objects.tolist() == other.objects.tolist() and one.sources == tuple(names)


def test_script_needs_no_images(main, make_store, tmp_path, capsys):
    """Statistics are counted where the pictures are not, or their sizes are unknown."""
    store = concurring_store(make_store)
    header = json.loads((store.path / "header.json").read_text())
    header.update(image_root=None, has_image_sizes=False)
    (store.path / "header.json").write_text(json.dumps(header))
    assert AnnotationStore.open(store.path).image_root is None
    assert main(["--store", str(store.path), "--output", str(tmp_path / "out")]) == 0
    assert "24 images" in capsys.readouterr().out


@pytest.mark.parametrize(("pictures", "ids"), [([], CLASS_IDS), ([Picture("a")], ["$only$"])])
def test_script_without_objects(main, make_store, tmp_path, capsys, pictures, ids):
    store = make_store(pictures, ids, None)
    assert main(["--store", str(store.path), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"0 objects, {len(ids)} classes, {len(ids)} of them without images" in printed
    assert "0 pairs above 0" in printed and not (tmp_path / "out" / "concurrent_rates.png").exists()
    assert (tmp_path / "out" / "long_tail.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "absent"], "absent: no annotation store"),
        (["--dataset", "absent"], "unknown data set 'absent'"),
        (["--store", "STORE", "--implicit-iou", "1.5"], "implicit_iou must be in (0, 1], got 1.5"),
        (["--store", "STORE", "--no-explicit", "--no-hierarchy"], "would all be 0"),
        (["--store", "STORE", "--thresholds", "9", "3"], "low <= high"),
        (["--store", "STORE", "--output", "FILE"], "FILE"),
    ],
)
def test_script_on_bad_input(main, make_store, tmp_path, capsys, arguments, message):
    store = concurring_store(make_store)
    (tmp_path / "FILE").write_text("")
    words = [str(store.path) if word == "STORE" else word for word in arguments]
    words = [str(tmp_path / word) if word == "FILE" else word for word in words]
    words = words if "--output" in words else [*words, "--output", str(tmp_path / "out")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--store", "a", "--dataset", "b"],
        ["--store", "a", "--classes", "0"],
        ["--store", "a", "--strongest", "-1"],
    ],
)
def test_script_on_bad_options(main, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--output", str(tmp_path / "out")])
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err


def test_real_class_names_fit(main, shared_dir, make_store, tmp_path):
    """All names of the challenge in one heat map."""
    with open(shared_dir / "data" / "openimages" / "challenge-2019-classes-500.csv") as file:
        names = list(dict.fromkeys(row[1] for row in csv.reader(file)))  # two classes share a name
    generator = np.random.default_rng(0)
    pictures = [
        Picture(f"{n:03d}", [((0, 0, 5, 5), generator.choice(len(names), 3, replace=False).tolist(), 0)])
        for n in range(300)
    ]
    store = make_store(pictures, names, None)
    out = tmp_path / "out"
    assert main(["--store", str(store.path), "--output", str(out), "--classes", "500"]) == 0
    assert Image.open(out / "concurrent_rates.png").size[0] > 2000
