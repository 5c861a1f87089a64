import csv
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from factories import store_columns
from lvis_cases import feed

from longtail_det2.cli import main
from longtail_det2.data.hierarchy import LabelHierarchy
from longtail_det2.data.open_images_csv import read_classes
from longtail_det2.data.store import AnnotationStore, write_store
from longtail_det2.evaluation.evaluator import StoreEvaluator
from longtail_det2.evaluation.openimages_io import read_detections, read_ground_truth
from longtail_det2.evaluation.openimages_metric import OpenImagesMetric
from longtail_det2.utils.errors import ConfigError, DataError

HEIGHT, WIDTH = 480, 640


@pytest.fixture(scope="module")
def golden_store(oid, tmp_path_factory):
    """The golden annotations as a store: one object per row."""
    ids, names = read_classes(oid / "classes.csv")
    truth, image_ids, _ = read_ground_truth(oid / "boxes.csv", oid / "imagelabels.csv", ids)
    boxes, labels = (np.argsort(image, kind="stable") for image in (truth.image, truth.label_image))
    objects = [(truth.image[k], truth.box[k], [truth.cls[k]], 4 * truth.group_of[k] | 1) for k in boxes]
    verified = [(truth.label_image[k], truth.label_cls[k], truth.label_present[k]) for k in labels]
    columns = store_columns(image_ids, (HEIGHT, WIDTH), objects, verified)
    parents = LabelHierarchy.from_json(oid / "hierarchy.json", ids).to_parents()
    return write_store(tmp_path_factory.mktemp("store") / "golden", columns, ids, names, parents=parents)


@pytest.fixture(scope="module")
def outputs(oid, golden_store):
    """(inputs, outputs) as a detector gives them, one image each."""
    images = [name.decode() for name in golden_store.image_ids.tolist()]
    detections, _ = read_detections(oid / "predictions.csv", golden_store.class_ids, images)
    pairs = []
    for index, image_id in enumerate(images):
        rows = detections.image == index
        found = Instances((HEIGHT, WIDTH))
        scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
        found.pred_boxes = Boxes(torch.as_tensor(detections.box[rows] * scale, dtype=torch.float32))
        found.scores = torch.as_tensor(detections.score[rows], dtype=torch.float32)
        found.pred_classes = torch.as_tensor(detections.cls[rows], dtype=torch.int64)
        pairs.append(({"image_id": image_id}, {"instances": found}))
    return pairs


def make_evaluator(store, output_dir=None, train_counts=None, **options):
    metrics = [OpenImagesMetric(**options)]
    return StoreEvaluator(store, metrics, output_dir=output_dir, train_counts=train_counts)


COUNTS = np.array([0, 5, 90, 7, 50, 1000, 3, 80, 4, 40, 400, 30, 20, 10, 2])


def test_official_numbers_and_files(golden_store, outputs, expected, tmp_path, caplog):
    evaluator = make_evaluator(golden_store, output_dir=tmp_path / "new" / "folder", train_counts=COUNTS)
    with caplog.at_level(logging.INFO):
        results = feed(evaluator, outputs).evaluate()["bbox"]
    groups = ("leaves", "head", "medium", "tail")
    assert list(results) == ["mAP50", "mAP50_expanded", *(f"mAP50_{group}" for group in groups)]
    for name, protocol in (("mAP50", "official"), ("mAP50_expanded", "expanded_gt_and_predictions")):
        assert results[name] == pytest.approx(100 * expected[protocol]["mAP"], abs=1e-4)
    assert f"{results['mAP50']:.2f}" in caplog.text and "mAP50_tail" in caplog.text

    document = json.loads((tmp_path / "new" / "folder" / "results.json").read_text())
    classes = document["classes"]
    for one in classes:
        reference = expected["official"]["AP"][one["id"]]
        assert one["AP"] == (None if reference is None else pytest.approx(reference, abs=1e-6))
        assert one["num_gt"] == expected["official"]["num_gt"][one["id"]]
        assert (one["frequency_bin"] is not None) == one["is_leaf"]
    assert [one["train_images"] for one in classes] == COUNTS.tolist()
    for group in groups:
        members = [one for one in classes if group in (one["frequency_bin"], one["is_leaf"] and "leaves")]
        known = [one["AP"] for one in members if one["AP"] is not None]
        assert results[f"mAP50_{group}"] == pytest.approx(100 * np.mean(known), abs=1e-9)
    assert document["summary"]["bbox"]["mAP50"] == pytest.approx(results["mAP50"] / 100)
    facts = document["metrics"]["open_images"]
    assert facts["metric"] == expected["official"]["metric"] and "[0, 1]" in document["unit"]


def test_written_predictions_give_the_same_number_in_the_tool(golden_store, outputs, oid, tmp_path):
    results = feed(make_evaluator(golden_store, output_dir=tmp_path), outputs).evaluate()["bbox"]
    files = {"boxes": "boxes.csv", "image-labels": "imagelabels.csv", "classes": "classes.csv"}
    given = [part for flag, name in files.items() for part in (f"--{flag}", str(oid / name))]
    given += ["--hierarchy", str(oid / "hierarchy.json"), "--predictions", str(tmp_path / "predictions.csv")]
    assert main(["evaluate-openimages", *given, "--output", str(tmp_path / "r.json")]) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["mAP"] == pytest.approx(results["mAP50"] / 100, abs=1e-6)
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)


def test_store_without_objects_is_nan_with_a_warning(tmp_path, caplog):
    store = write_store(tmp_path / "store", store_columns(size=(HEIGHT, WIDTH)), ["x", "y"])
    evaluator = make_evaluator(store, output_dir=tmp_path / "out", train_counts=[1, 2])
    results = evaluator.evaluate()["bbox"]
    assert all(np.isnan(value) for value in results.values()) and "holds no object" in caplog.text
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["summary"]["bbox"]["mAP50"] is None and document["classes"][0]["AP"] is None


def test_options(golden_store, outputs, tmp_path):
    chosen = {"iou_threshold": 0.75, "group_of_weight": 0.0}
    chosen |= {"expand_predictions": False, "write_predictions_csv": False}
    evaluator = make_evaluator(golden_store, output_dir=tmp_path, **chosen)
    results = feed(evaluator, outputs).evaluate()["bbox"]
    assert list(results) == ["mAP75", "mAP75_leaves"]
    assert not (tmp_path / "predictions.csv").exists()
    options = json.loads((tmp_path / "results.json").read_text())["metrics"]["open_images"]["options"]
    assert options == chosen
    assert make_evaluator(golden_store).evaluate()["bbox"]["mAP50"] == 0  # without any detection


def test_dataset_by_name_and_by_path(golden_store):
    assert len(make_evaluator(str(golden_store.path)).store) == len(golden_store)
    MetadataCatalog.get("with_store").set(store_path=str(golden_store.path))
    MetadataCatalog.get("without_store").set(thing_classes=["a"])
    assert isinstance(make_evaluator("with_store").store, AnnotationStore)
    with pytest.raises(ConfigError, match="has no annotation store"):
        make_evaluator("without_store")
    with pytest.raises(DataError, match="no annotation store"):
        make_evaluator("no_such_data_set")
