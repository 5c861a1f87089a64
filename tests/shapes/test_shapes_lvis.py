"""The generated data set in LVIS v1 form: what is annotated, what is verified, and the store made of it."""

import collections
import hashlib
from pathlib import Path

import numpy as np
import pytest
from shapes_reading import OPTIONS, polygons_to_mask, read_csv, read_json

from longtail_det2.shapes import ShapesOptions, generate_shapes
from longtail_det2.shapes.plan import plan_split
from longtail_det2.shapes.vocabulary import ShapesVocabulary
from longtail_det2.shapes.writers import CoLabelRule

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def plans(vocabulary):
    return {split: plan_split(OPTIONS, vocabulary, split)[0] for split in SPLITS}


def by_image(content):
    """{image id: its annotations, in order}."""
    found = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


def place(annotation):
    return tuple(annotation["bbox"]), str(annotation["segmentation"])


def test_an_object_has_one_annotation_of_its_true_leaf(dataset, plans):
    """Where the annotators of the other forms wrote a parent or a similar leaf, too."""
    kinds = collections.Counter()
    of_pair = collections.defaultdict(set)
    for split in SPLITS:
        lvis = by_image(read_json(dataset / "lvis" / f"{split}.json"))
        coco = by_image(read_json(dataset / "coco" / f"{split}.json"))
        for number, image in enumerate(plans[split], start=1):
            ours = lvis[number]
            for planned, theirs in zip(image.objects, coco[number], strict=True):
                if planned.group:
                    assert theirs["iscrowd"] and len(ours) >= 1
                    continue
                (same,) = [one for one in ours if place(one) == place(theirs)]
                assert same["category_id"] - 1 in planned.leaves
                kinds["co_label"] += len(planned.leaves) == 2
                of_pair[frozenset(planned.leaves)].add(same["category_id"])
                kinds["noisy"] += planned.labels != planned.leaves
            singles = [place(one) for one in coco[number] if not one["iscrowd"]]
            members = [one for one in ours if place(one) not in singles]
            leaves = [planned.leaves[0] + 1 for planned in image.objects if planned.group]
            assert {one["category_id"] for one in members} <= set(leaves)
            kinds["member"] += len(members)
    assert all(kinds[kind] > 20 for kind in ("co_label", "noisy", "member"))
    assert all(len(chosen) == 1 for chosen in of_pair.values())  # a pair of colours is always the same class


def test_co_labels_leave_every_class_about_its_frequency():
    vocabulary = ShapesVocabulary.build()
    for seed in range(2):
        options = ShapesOptions(train_images=3000, co_label_rate=0.3, seed=seed)
        images, counts = plan_split(options, vocabulary, "train")
        rule = CoLabelRule(images, 60)
        objects = [planned.leaves for image in images for planned in image.objects]
        annotated = np.bincount([rule.leaf_of(leaves) for leaves in objects], minlength=60)
        own = np.bincount([leaves[0] for leaves in objects if len(leaves) == 1], minlength=60)
        assert (own <= annotated).all() and (annotated <= counts).all() and annotated.min() >= 2
        rarest = np.argsort(counts)[:20]
        assert annotated[rarest].sum() > 0.7 * counts[rarest].sum()
        assert all(rule.leaf_of(leaves) == rule.leaf_of(leaves[::-1]) in leaves for leaves in objects)


def test_the_fields_of_lvis(dataset, vocabulary):
    train = read_json(dataset / "lvis" / "train.json")
    images = collections.defaultdict(set)
    instances = collections.Counter()
    for number, annotation in enumerate(train["annotations"], start=1):
        assert annotation["id"] == number
        images[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
        assert set(annotation) == {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
        assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in annotation["segmentation"])
        mask = polygons_to_mask(annotation["segmentation"], 96, 96)
        x, y, width, height = annotation["bbox"]
        assert mask.sum() == annotation["area"] == mask[y : y + height, x : x + width].sum() > 0
    assert [one["id"] for one in train["categories"]] == list(range(1, vocabulary.num_leaves + 1))
    for category in train["categories"]:
        number = category["image_count"]
        assert number == len(images[category["id"]]) >= 4
        assert category["instance_count"] == instances[category["id"]] >= number
        assert category["frequency"] == ("r" if number <= 10 else "c" if number <= 100 else "f")
        name = vocabulary.class_names[category["id"] - 1]
        assert category["name"] == name.replace(" ", "_")
    assert {one["frequency"] for one in train["categories"]} >= {"r", "c"}
    for image in train["images"]:
        assert image["coco_url"].split("/")[-2:] == ["train", image["file_name"]]
        assert (image["height"], image["width"]) == (96, 96)
        assert (dataset / "images" / "train" / image["file_name"]).is_file()
    validation = read_json(dataset / "lvis" / "validation.json")
    assert validation["categories"] == train["categories"]


def test_verified_absent_classes_are_those_of_the_open_images_form(dataset, plans, vocabulary):
    index = {class_id: i for i, class_id in enumerate(vocabulary.class_ids)}
    inner = 0
    for split in SPLITS:
        absent = collections.defaultdict(set)
        for row in read_csv(dataset / "annotations" / f"{split}-human-imagelabels.csv"):
            if row["Confidence"] == "0":
                label = index[row["LabelName"]]
                absent[row["ImageID"]] |= set(vocabulary.leaves_below(label))
                inner += label >= vocabulary.num_leaves
        content = read_json(dataset / "lvis" / f"{split}.json")
        for image, planned in zip(content["images"], plans[split], strict=True):
            verified = {category - 1 for category in image["neg_category_ids"]}
            assert verified == absent[Path(image["file_name"]).stem] != set()
            assert not verified & {leaf for one in planned.objects for leaf in one.leaves}
    assert inner > 50


def test_not_exhaustive_are_annotated_classes_with_further_instances(dataset, plans):
    seen = collections.Counter()
    for split in SPLITS:
        content = read_json(dataset / "lvis" / f"{split}.json")
        annotated = by_image(content)
        for image, planned in zip(content["images"], plans[split], strict=True):
            categories = [one["category_id"] - 1 for one in annotated[image["id"]]]
            true = collections.Counter(leaf for one in planned.objects for leaf in one.leaves)
            groups = {one.leaves[0] for one in planned.objects if one.group}
            partial = {leaf - 1 for leaf in image["not_exhaustive_category_ids"]}
            assert partial <= set(categories)
            assert not partial & {category - 1 for category in image["neg_category_ids"]}
            for leaf in set(categories) - groups:
                assert (leaf in partial) == (categories.count(leaf) < true[leaf])
                seen["partial"] += leaf in partial
            assert groups & set(categories) <= partial
            seen["group"] += len(groups)
    assert seen["partial"] > 0 and seen["group"] > 0


def test_the_same_options_give_the_same_plan_as_ever(tmp_path):
    """Digests of files of earlier versions that depend on the plan alone."""
    options = ShapesOptions(
        **{"train_images": 150, "validation_images": 30, "image_size": 64, "imbalance": 5.0},
        **{"missing_leaf_rate": 0.2, "co_label_rate": 0.15, "confusion_rate": 0.05, "group_of_rate": 0.05},
        **{"min_objects": 2, "seed": 3, "formats": ("openimages",)},
    )
    generate_shapes(tmp_path / "s", options, workers=1, progress=False)
    for split, digest in (("train", "c0718ea728102305"), ("validation", "c39dfa8c509c1f19")):
        content = (tmp_path / f"s/annotations/{split}-human-imagelabels.csv").read_bytes()
        assert hashlib.sha256(content).hexdigest()[:16] == digest
