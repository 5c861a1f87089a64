"""The generated data set: frequencies, label noise, geometry, formats, repeatability, errors."""

import collections
import csv
import dataclasses
import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail_det2.data.datasets import shapes
from longtail_det2.data.datasets.coco import prepare_coco
from longtail_det2.data.datasets.openimages import prepare_openimages
from longtail_det2.data.datasets.shapes import ShapesOptions, generate_shapes
from longtail_det2.data.datasets.shapes_drawing import draw_image
from longtail_det2.data.datasets.shapes_figures import rasterise, unit_outline
from longtail_det2.data.datasets.shapes_masks import mask_to_polygons, mask_to_runs, measure_region
from longtail_det2.data.datasets.shapes_plan import (
    PlannedImage,
    PlannedObject,
    geometric_counts,
    plan_split,
)
from longtail_det2.data.datasets.shapes_vocabulary import COLOURS, SHAPES, ShapesVocabulary
from longtail_det2.data.datasets.shapes_writers import BOX_COLUMNS, lvis_frequencies
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.utils.errors import ConfigError, DataError

OPTIONS = ShapesOptions(
    train_images=150,
    validation_images=40,
    image_size=96,
    imbalance=20.0,
    missing_leaf_rate=0.1,
    co_label_rate=0.15,
    confusion_rate=0.05,
    group_of_rate=0.05,
    num_leaves=24,
    seed=3,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    generate_shapes(folder, OPTIONS, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def vocabulary():
    return ShapesVocabulary.build(OPTIONS.num_leaves)


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text())


def polygons_to_mask(polygons, size):
    """Even-odd test of pixel centres, one polygon after the other: slow and obvious."""
    mask = np.zeros((size, size), dtype=bool)
    centres = np.arange(size) + 0.5
    for polygon in polygons:
        x, y = np.array(polygon[0::2], dtype=float), np.array(polygon[1::2], dtype=float)
        inside = np.zeros((size, size), dtype=bool)
        for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
            if x0 == x1 and y0 != y1:
                rows = (centres > min(y0, y1)) & (centres < max(y0, y1))
                inside ^= rows[:, None] & (centres > x0)[None, :]
        mask |= inside
    return mask


def runs_to_mask(runs):
    values = np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"])
    return values.reshape(runs["size"][1], runs["size"][0]).T


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


def test_colours_are_well_separated():
    values = np.array(list(COLOURS.values()), dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distances[~np.eye(len(values), dtype=bool)].min() > 75


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


def test_frequency_is_independent_of_shape_and_colour():
    vocabulary = ShapesVocabulary.build()
    top = []
    for seed in range(12):
        options = ShapesOptions(train_images=400, seed=seed, imbalance=50.0)
        top.append(vocabulary.leaves[int(np.argmax(plan_split(options, vocabulary, "train")[1]))])
    assert len({shape for shape, _ in top}) >= 3 and len({colour for _, colour in top}) >= 4


def test_validation_is_balanced_and_clean():
    vocabulary = ShapesVocabulary.build()
    images, counts = plan_split(ShapesOptions(validation_images=200), vocabulary, "validation")
    assert counts.max() - counts.min() <= 1
    objects = [planned for image in images for planned in image.objects]
    assert all(planned.labels == planned.leaves for planned in objects)
    assert any(len(planned.leaves) == 2 for planned in objects)
    noisy = ShapesOptions(validation_images=200, noisy_validation=True)
    images, counts = plan_split(noisy, vocabulary, "validation")
    assert counts.max() - counts.min() <= 1
    assert any(planned.labels != planned.leaves for image in images for planned in image.objects)


def test_all_rates_zero_gives_one_correct_label_each():
    options = ShapesOptions(
        train_images=100, missing_leaf_rate=0, co_label_rate=0, confusion_rate=0, group_of_rate=0
    )
    images, _ = plan_split(options, ShapesVocabulary.build(), "train")
    objects = [planned for image in images for planned in image.objects]
    assert all(planned.labels == planned.leaves and len(planned.leaves) == 1 for planned in objects)
    assert not any(planned.group for planned in objects)


def test_verified_negatives_are_truly_absent():
    vocabulary = ShapesVocabulary.build()
    images, _ = plan_split(ShapesOptions(train_images=200, negatives_per_image=9), vocabulary, "train")
    inner = 0
    for image in images:
        assert len(image.negatives) == 9 == len(set(image.negatives))
        present = {leaf for planned in image.objects for leaf in planned.leaves}
        written = {label for planned in image.objects for label in planned.labels}
        written |= {ancestor for label in written for ancestor in vocabulary.ancestors(label)}
        for label in image.negatives:
            assert not present & set(vocabulary.leaves_below(label))
            assert label not in written
        inner += any(label >= vocabulary.num_leaves for label in image.negatives)
    assert inner > 50


# Geometry


def test_polygons_and_runs_give_the_mask_back():
    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.8, 0.95, 1.0):
        for _ in range(20):
            mask = rng.random((11, 11)) < density
            assert np.array_equal(polygons_to_mask(mask_to_polygons(mask), 11), mask)
            assert np.array_equal(runs_to_mask(mask_to_runs(mask)), mask)
    assert mask_to_polygons(np.zeros((3, 3), dtype=bool)) == []
    assert measure_region(np.zeros((3, 3), dtype=bool)) is None


def test_polygons_mean_the_same_to_the_coco_tools():
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for density in (0.3, 0.6, 0.9):
        mask = rng.random((13, 17)) < density
        region = measure_region(mask)
        assert region is not None
        polygons = masks.decode(masks.merge(masks.frPyObjects(region.polygons, 13, 17)))
        assert np.array_equal(polygons.astype(bool), mask)
        assert np.array_equal(masks.decode(masks.frPyObjects(region.runs, 13, 17)).astype(bool), mask)


def test_simple_figures_have_simple_polygons():
    square = np.zeros((8, 8), dtype=bool)
    square[2:5, 1:7] = True
    assert mask_to_polygons(square) == [[1, 2, 7, 2, 7, 5, 1, 5]]
    square[3, 3] = False
    assert len(mask_to_polygons(square)) == 2


def test_figures_cover_the_area_of_their_outline():
    for shape in SHAPES:
        outline = tuple((points * 20.3 + 50.7, fill) for points, fill in unit_outline(shape))
        expected = 0.0
        for points, fill in outline:
            x, y = points.T
            area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
            expected += area if fill else -area
        part = rasterise(outline, 128)
        assert part.cover.sum() == pytest.approx(expected, rel=0.03)
        assert part.cover.sum() == pytest.approx(part.area)


def test_flags_and_boxes_say_what_is_visible():
    vocabulary = ShapesVocabulary.build()
    options = ShapesOptions(train_images=120, imbalance=10.0, group_of_rate=0.05)
    images, _ = plan_split(options, vocabulary, "train")
    flags = collections.Counter()
    for index, planned in enumerate(images):
        pixels, drawn = draw_image(planned, vocabulary, 128, 0, "train", index)
        assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
        for k, one in enumerate(drawn):
            flags.update(occluded=one.occluded, truncated=one.truncated)
            x0, y0, x1, y1 = one.region.box
            assert min(x1 - x0, y1 - y0) >= 8
            touches = x0 == 0 or y0 == 0 or x1 == 128 or y1 == 128
            assert touches or not one.truncated
            mask = runs_to_mask(one.region.runs)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert one.region.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            for other in drawn[:k]:
                assert not (mask & runs_to_mask(other.region.runs)).any()
    total = sum(len(image.objects) for image in images)
    assert 0.01 * total < flags["occluded"] < 0.2 * total
    assert 0.01 * total < flags["truncated"] < 0.2 * total


def test_objects_show_their_colours():
    vocabulary = ShapesVocabulary.build()
    index = {leaf: i for i, leaf in enumerate(vocabulary.leaves)}
    for number, (first, second) in enumerate([("red", "yellow"), ("blue", "brown"), ("green", "pink")]):
        leaves = (index["square", first], index["square", second])
        planned = PlannedImage((PlannedObject(leaves, leaves),), ())
        pixels, (drawn,) = draw_image(planned, vocabulary, 128, 0, "train", number)
        inside = pixels[runs_to_mask(drawn.region.runs)].astype(float)
        nearest = [
            list(COLOURS)[int(np.linalg.norm(np.array(list(COLOURS.values())) - pixel, axis=1).argmin())]
            for pixel in inside
        ]
        shares = collections.Counter(nearest)
        assert shares[first] / len(inside) > 0.25 and shares[second] / len(inside) > 0.25


def test_a_group_is_six_or_more_instances_that_touch():
    vocabulary = ShapesVocabulary.build()
    for leaf in range(0, 60, 7):
        planned = PlannedImage((PlannedObject((leaf,), (leaf,), group=True),), ())
        _, (drawn,) = draw_image(planned, vocabulary, 128, 0, "train", leaf)
        members = [member.box for member in drawn.members]
        assert members
        x0, y0, x1, y1 = drawn.region.box
        for box in members:
            assert box[0] >= x0 and box[1] >= y0 and box[2] <= x1 and box[3] <= y1
            assert (x1 - x0) * (y1 - y0) > 3 * (box[2] - box[0]) * (box[3] - box[1])


def test_a_crowded_image_still_shows_every_object():
    vocabulary = ShapesVocabulary.build()
    objects = tuple(PlannedObject((leaf,), (leaf,), group=leaf < 4) for leaf in range(16))
    _, drawn = draw_image(PlannedImage(objects, ()), vocabulary, 64, 0, "validation", 5)
    assert len(drawn) == 16 and all(one.region.area > 0 for one in drawn)


# Files


def test_open_images_files(dataset, vocabulary):
    folder = dataset / "annotations"
    assert (folder / "train-annotations-bbox.csv").read_text().splitlines()[0] == ",".join(BOX_COLUMNS)
    descriptions = [line.split(",") for line in (folder / "class-descriptions.csv").read_text().splitlines()]
    assert [class_id for class_id, _ in descriptions] == list(vocabulary.class_ids)
    hierarchy = LabelHierarchy.from_json(folder / "hierarchy.json", vocabulary.class_ids)
    assert hierarchy.leaves.tolist() == list(range(vocabulary.num_leaves))
    for split, number in (("train", 150), ("validation", 40)):
        boxes = read_csv(folder / f"{split}-annotations-bbox.csv")
        labels = read_csv(folder / f"{split}-human-imagelabels.csv")
        images = sorted(path.stem for path in (dataset / "images" / split).glob("*.jpg"))
        assert len(images) == number and {row["ImageID"] for row in boxes} == set(images)
        for row in boxes:
            assert 0 <= float(row["XMin"]) < float(row["XMax"]) <= 1
            assert 0 <= float(row["YMin"]) < float(row["YMax"]) <= 1
            assert row["LabelName"] in vocabulary.class_ids
        written = {(row["ImageID"], row["LabelName"]) for row in boxes}
        positive = {(row["ImageID"], row["LabelName"]) for row in labels if row["Confidence"] == "1"}
        negative = {(row["ImageID"], row["LabelName"]) for row in labels if row["Confidence"] == "0"}
        assert positive == written and not negative & positive and negative
        assert sum(row["IsGroupOf"] == "1" for row in boxes) > 0
    with Image.open(dataset / "images" / "train" / "train_000000.jpg") as image:
        assert image.size == (96, 96) and image.mode == "RGB"


def test_co_labels_are_rows_with_one_box(dataset):
    rows = read_csv(dataset / "annotations" / "train-annotations-bbox.csv")
    by_box = collections.Counter((r["ImageID"], r["XMin"], r["XMax"], r["YMin"], r["YMax"]) for r in rows)
    counts = read_json(dataset / "generation.json")["counts"]["train"]
    assert set(by_box.values()) == {1, 2}
    assert sum(number == 2 for number in by_box.values()) == counts["co_label"] > 0
    assert len(by_box) == counts["objects"] and len(rows) == counts["rows"]


def test_coco_tells_of_the_same_objects(dataset, vocabulary):
    for split in ("train", "validation"):
        coco = read_json(dataset / "coco" / f"{split}.json")
        rows = read_csv(dataset / "annotations" / f"{split}-annotations-bbox.csv")
        files = {image["id"]: Path(image["file_name"]).stem for image in coco["images"]}
        names = {category["id"]: category["class_id"] for category in coco["categories"]}
        assert list(names) == list(range(1, vocabulary.num_classes + 1))
        ours = []
        for annotation in coco["annotations"]:
            x, y, width, height = annotation["bbox"]
            box = tuple(f"{edge / 96:.6f}" for edge in (x, x + width, y, y + height))
            assert annotation["category_id"] == annotation["category_ids"][0]
            for label in annotation["category_ids"]:
                ours.append((files[annotation["image_id"]], names[label], *box, str(annotation["iscrowd"])))
            if annotation["iscrowd"]:
                mask = runs_to_mask(annotation["segmentation"])
            else:
                mask = polygons_to_mask(annotation["segmentation"], 96)
            assert mask.sum() == annotation["area"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert mask[y].any() and mask[y + height - 1].any()
            assert mask[:, x].any() and mask[:, x + width - 1].any()
        columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
        assert ours == [tuple(row[name] for name in columns) for row in rows]


def stored_objects(store):
    """(image, box, flags, labels) of all objects, in no particular order."""
    files = [Path(name.decode() if isinstance(name, bytes) else str(name)).stem for name in store.file_names]
    found = []
    for image, file in enumerate(files):
        for k in range(store.object_offsets[image], store.object_offsets[image + 1]):
            labels = store.labels[store.label_offsets[k] : store.label_offsets[k + 1]]
            box = [round(float(edge) * 96) for edge in store.boxes[k]]
            found.append((file, box, int(store.flags[k]) & 4, sorted(labels.tolist())))
    return sorted(found)


def stored_image_labels(store):
    files = [Path(name.decode() if isinstance(name, bytes) else str(name)).stem for name in store.file_names]
    rows = np.repeat(np.arange(len(files)), np.diff(store.image_label_offsets))
    labels = zip(rows.tolist(), store.image_labels.tolist(), store.image_label_positive.tolist(), strict=True)
    return sorted((files[row], label, positive) for row, label, positive in labels)


def test_the_stores_of_both_forms_are_the_same(dataset, tmp_path):
    folder = dataset / "annotations"
    images = dataset / "images" / "train"
    ours = prepare_openimages(
        [folder / "train-annotations-bbox.csv"],
        [folder / "train-human-imagelabels.csv"],
        folder / "class-descriptions.csv",
        folder / "hierarchy.json",
        images,
        tmp_path / "openimages",
        workers=1,
        progress=False,
    )
    coco = prepare_coco(
        dataset / "coco" / "train.json",
        images,
        tmp_path / "coco",
        hierarchy=dataset / "coco" / "hierarchy.json",
    )
    counts = read_json(dataset / "generation.json")["counts"]["train"]
    assert len(ours) == 150 and ours.num_objects == counts["objects"]
    assert ours.class_names == coco.class_names
    assert stored_objects(ours) == stored_objects(coco)
    assert stored_image_labels(ours) == stored_image_labels(coco)
    assert np.array_equal(ours.hierarchy.ancestors, coco.hierarchy.ancestors)
    rows = [entry["rows"] for entry in counts["classes"].values()]
    assert ours.object_counts().tolist() == rows


def test_lvis_files(dataset, vocabulary):
    train = read_json(dataset / "lvis" / "train.json")
    images = collections.defaultdict(set)
    instances = collections.Counter()
    present = collections.defaultdict(set)
    for annotation in train["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
        present[annotation["image_id"]].add(annotation["category_id"])
        instances[annotation["category_id"]] += 1
        assert annotation["area"] > 0
        assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in annotation["segmentation"])
        mask = polygons_to_mask(annotation["segmentation"], 96)
        x, y, width, height = annotation["bbox"]
        assert mask.sum() == annotation["area"] == mask[y : y + height, x : x + width].sum()
    assert [category["id"] for category in train["categories"]] == list(range(1, vocabulary.num_leaves + 1))
    for category in train["categories"]:
        assert category["image_count"] == len(images[category["id"]])
        assert category["instance_count"] == instances[category["id"]] >= 4
        assert category["frequency"] == ("r" if category["image_count"] <= 10 else "c")
    partial = 0
    for image in train["images"]:
        assert not present[image["id"]] & set(image["neg_category_ids"])
        assert not set(image["neg_category_ids"]) & set(image["not_exhaustive_category_ids"])
        assert image["coco_url"].split("/")[-2:] == ["train", image["file_name"]]
        partial += bool(image["not_exhaustive_category_ids"])
    assert partial > 0
    validation = read_json(dataset / "lvis" / "validation.json")
    assert validation["categories"] == train["categories"]
    assert lvis_frequencies([0, 10, 11, 100, 101], (10, 100)) == ["r", "r", "c", "c", "f"]


def test_lvis_negatives_of_an_inner_class_are_its_leaves(dataset, vocabulary):
    labels = read_csv(dataset / "annotations" / "train-human-imagelabels.csv")
    train = read_json(dataset / "lvis" / "train.json")
    index = {class_id: i for i, class_id in enumerate(vocabulary.class_ids)}
    absent = collections.defaultdict(set)
    for row in labels:
        if row["Confidence"] == "0":
            absent[row["ImageID"]] |= set(vocabulary.leaves_below(index[row["LabelName"]]))
    for image in train["images"]:
        assert set(image["neg_category_ids"]) == {leaf + 1 for leaf in absent[Path(image["file_name"]).stem]}


def test_generation_file_counts_what_was_written(dataset, vocabulary):
    generation = read_json(dataset / "generation.json")
    assert generation["options"] == OPTIONS.to_json() and generation["seed"] == 3
    rows = read_csv(dataset / "annotations" / "train-annotations-bbox.csv")
    written = collections.Counter(row["LabelName"] for row in rows)
    classes = generation["counts"]["train"]["classes"]
    assert {name: entry["rows"] for name, entry in classes.items() if entry["rows"]} == dict(written)
    pairs = collections.Counter(name for _, name in {(row["ImageID"], row["LabelName"]) for row in rows})
    assert {name: entry["images"] for name, entry in classes.items() if entry["images"]} == dict(pairs)
    assert sum(row["IsOccluded"] == "1" for row in rows) >= generation["counts"]["train"]["occluded"]


def test_only_the_wanted_formats_are_written(tmp_path):
    options = dataclasses.replace(
        OPTIONS, train_images=80, validation_images=20, formats=("lvis",), image_format="png"
    )
    generate_shapes(tmp_path / "s", options, workers=1, progress=False)
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"annotations", "images", "lvis", "generation.json", "README.md"}
    assert {path.name for path in (tmp_path / "s" / "annotations").iterdir()} == {
        "class-descriptions.csv",
        "hierarchy.json",
    }
    assert len(list((tmp_path / "s" / "images" / "train").glob("*.png"))) == 80


# Repeatability


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_same_seed_same_bytes_whatever_the_number_of_workers(dataset, tmp_path):
    other = tmp_path / "other"
    generate_shapes(other, OPTIONS, workers=3, progress=False)
    names = files_of(dataset)
    assert names == files_of(other)
    assert filecmp.cmpfiles(dataset, other, names, shallow=False)[1:] == ([], [])


def test_another_seed_gives_other_images(dataset, tmp_path):
    options = dataclasses.replace(OPTIONS, seed=4)
    generate_shapes(tmp_path / "other", options, workers=1, progress=False)
    name = Path("images/train/train_000000.jpg")
    assert (dataset / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_an_image_depends_on_its_own_plan_only():
    vocabulary = ShapesVocabulary.build()
    planned = PlannedImage((PlannedObject((3,), (3,)), PlannedObject((20,), (20,))), ())
    first, _ = draw_image(planned, vocabulary, 64, 7, "train", 11)
    draw_image(planned, vocabulary, 64, 7, "train", 12)
    again, _ = draw_image(planned, vocabulary, 64, 7, "train", 11)
    assert np.array_equal(first, again)
    for arguments in ((8, "train", 11), (7, "validation", 11), (7, "train", 12)):
        assert not np.array_equal(first, draw_image(planned, vocabulary, 64, *arguments)[0])


def test_a_second_call_finds_the_data_set_and_other_options_need_force(tmp_path):
    folder = tmp_path / "s"
    options = dataclasses.replace(OPTIONS, train_images=80, validation_images=20)
    first = generate_shapes(folder, options, workers=1, progress=False)
    stamp = (folder / "generation.json").stat().st_mtime_ns
    assert generate_shapes(folder, options, workers=1, progress=False) == first
    assert (folder / "generation.json").stat().st_mtime_ns == stamp
    changed = dataclasses.replace(options, seed=9)
    with pytest.raises(ConfigError, match=r"seed: 3 -> 9.*--force"):
        generate_shapes(folder, changed, workers=1, progress=False)
    assert generate_shapes(folder, changed, workers=1, force=True, progress=False)["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# Errors


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(DataError, match="not a data set made by this generator"):
            generate_shapes(tmp_path / "s", OPTIONS, force=force, progress=False)
    (tmp_path / "s" / "generation.json").write_text("[]")
    with pytest.raises(DataError):
        generate_shapes(tmp_path / "s", OPTIONS, force=True, progress=False)
    assert (tmp_path / "s" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DataError):
        generate_shapes(tmp_path / "s" / "thesis.txt", OPTIONS, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing_leaf_rate": 1.5}, r"missing_leaf_rate must be in \[0, 1\], got 1.5"),
        ({"co_label_rate": -0.1}, "co_label_rate"),
        ({"confusion_rate": float("nan")}, "confusion_rate"),
        ({"imbalance": 0.5}, "imbalance must be at least 1"),
        ({"imbalance": float("inf")}, "imbalance must be finite"),
        ({"num_leaves": 61}, "num_leaves"),
        ({"num_leaves": 1}, "num_leaves"),
        ({"train_images": 10}, "too few"),
        ({"validation_images": 2}, "too few"),
        ({"image_size": 8}, "image_size"),
        ({"max_objects": 40}, "max_objects"),
        ({"seed": -1}, "seed"),
        ({"image_format": "gif"}, "image_format"),
        ({"formats": ("voc",)}, "formats"),
        ({"formats": ()}, "formats"),
        ({"lvis_thresholds": (100, 10)}, "lvis_thresholds"),
        ({"missing_leaf_rate": 0.6, "confusion_rate": 0.5}, "lower the rates"),
        ({"co_label_rate": 1.0}, "lower co_label_rate"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        generate_shapes(tmp_path / "s", dataclasses.replace(OPTIONS, **change), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(shapes, "write_coco", fail)
    options = dataclasses.replace(OPTIONS, train_images=80, validation_images=20)
    with pytest.raises(OSError, match="disk full"):
        generate_shapes(tmp_path / "s", options, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def run_script(repository, *arguments):
    command = [sys.executable, str(repository / "scripts" / "generate_shapes.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_command_line(repository, tmp_path):
    arguments = ["--output", tmp_path / "s", "--quiet", "--num-leaves", 12, "--imbalance", 2]
    arguments += ["--train-images", 20, "--validation-images", 8, "--image-size", 64, "--format", "png"]
    arguments += ["--group-of-rate", 0, "--lvis-thresholds", 1, 5, "--formats", "openimages,lvis"]
    process = run_script(repository, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "train: 20 images" in out
    options = read_json(tmp_path / "s" / "generation.json")["options"]
    assert options["num_leaves"] == 12 and options["lvis_thresholds"] == [1, 5]
    assert options["formats"] == ["openimages", "lvis"] and options["image_format"] == "png"
    process = run_script(repository, "--output", tmp_path / "t", "--co-label-rate", 2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.startswith("error: co_label_rate") and "Traceback" not in err


def test_a_killed_run_leaves_nothing_that_looks_finished(repository, tmp_path):
    output = tmp_path / "s"
    arguments = ["--output", output, "--quiet", "--train-images", 20000, "--workers", 2]
    process = run_script(repository, *arguments)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".s.partial-*/images/train/*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # ends only when the workers have let go of the pipes, too
    assert not output.exists()
    assert len(list(tmp_path.glob(".s.partial-*"))) == 1
    options = dataclasses.replace(OPTIONS, train_images=80, validation_images=20)
    generate_shapes(output, options, workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
