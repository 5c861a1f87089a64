import csv
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

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
    count = len(image_ids)
    columns = {
        "image_id": np.array(image_ids),
        "file_name": np.array([f"{name}.jpg" for name in image_ids]),
        "image_size": np.full((count, 2), (HEIGHT, WIDTH)),
        "object_offsets": np.searchsorted(truth.image[boxes], np.arange(count + 1)),
        "box": truth.box[boxes],
        "flags": np.where(truth.group_of[boxes], 4 | 1, 1).astype(np.uint8),
        "label_offsets": np.arange(len(truth) + 1),
        "label": truth.cls[boxes],
        "image_label_offsets": np.searchsorted(truth.label_image[labels], np.arange(count + 1)),
        "image_label": truth.label_cls[labels],
        "image_label_status": truth.label_present[labels].astype(np.uint8),
    }
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
        pairs.append((record(image_id), {"instances": instances(detections, rows)}))
    return pairs


def record(image_id):
    return {"image_id": image_id, "height": HEIGHT, "width": WIDTH}


def instances(detections, rows):
    found = Instances((HEIGHT, WIDTH))
    scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    found.pred_boxes = Boxes(torch.as_tensor(detections.box[rows] * scale, dtype=torch.float32))
    found.scores = torch.as_tensor(detections.score[rows], dtype=torch.float32)
    found.pred_classes = torch.as_tensor(detections.cls[rows], dtype=torch.int64)
    return found


def feed(evaluator, pairs, batch=3):
    evaluator.reset()
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        evaluator.process([p[0] for p in chunk], [p[1] for p in chunk])
    return evaluator


def make_evaluator(store, output_dir=None, train_counts=None, **options):
    return StoreEvaluator(
        store, [OpenImagesMetric(**options)], output_dir=output_dir, train_counts=train_counts
    )


COUNTS = np.array([0, 5, 90, 7, 50, 1000, 3, 80, 4, 40, 400, 30, 20, 10, 2])


def test_official_numbers_and_files(golden_store, outputs, expected, tmp_path, caplog):
    evaluator = make_evaluator(golden_store, output_dir=tmp_path / "new" / "folder", train_counts=COUNTS)
    with caplog.at_level(logging.INFO):
        results = feed(evaluator, outputs).evaluate()["bbox"]
    assert list(results) == [
        f"mAP50{suffix}" for suffix in ("", "_expanded", "_leaves", "_head", "_medium", "_tail")
    ]
    assert results["mAP50"] == pytest.approx(100 * expected["official"]["mAP"], abs=1e-4)
    assert results["mAP50_expanded"] == pytest.approx(
        100 * expected["expanded_gt_and_predictions"]["mAP"], abs=1e-4
    )
    assert f"{results['mAP50']:.2f}" in caplog.text and "mAP50_tail" in caplog.text

    document = json.loads((tmp_path / "new" / "folder" / "results.json").read_text())
    classes = document["classes"]
    for one in classes:
        reference = expected["official"]["AP"][one["id"]]
        assert one["AP"] == (None if reference is None else pytest.approx(reference, abs=1e-6))
        assert one["num_gt"] == expected["official"]["num_gt"][one["id"]]
        assert (one["frequency_bin"] is not None) == one["is_leaf"]
    assert [one["train_images"] for one in classes] == COUNTS.tolist()
    leaves = [one["AP"] for one in classes if one["is_leaf"] and one["AP"] is not None]
    assert results["mAP50_leaves"] == pytest.approx(100 * np.mean(leaves), abs=1e-9)
    for group in ("head", "medium", "tail"):
        members = [one["AP"] for one in classes if one["frequency_bin"] == group and one["AP"] is not None]
        assert results[f"mAP50_{group}"] == pytest.approx(100 * np.mean(members), abs=1e-9)
    assert document["summary"]["bbox"]["mAP50"] == pytest.approx(results["mAP50"] / 100)
    facts = document["metrics"]["open_images"]
    assert facts["metric"] == expected["official"]["metric"] and "[0, 1]" in document["unit"]


def test_written_predictions_give_the_same_number_in_the_tool(
    golden_store, outputs, oid, tool, tmp_path, expected
):
    results = feed(make_evaluator(golden_store, output_dir=tmp_path), outputs).evaluate()["bbox"]
    files = {"boxes": "boxes.csv", "image-labels": "imagelabels.csv", "classes": "classes.csv"}
    given = [part for flag, name in files.items() for part in (f"--{flag}", str(oid / name))]
    given += ["--hierarchy", str(oid / "hierarchy.json"), "--predictions", str(tmp_path / "predictions.csv")]
    assert tool.main([*given, "--output", str(tmp_path / "r.json")]) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["mAP"] == pytest.approx(results["mAP50"] / 100, abs=1e-6)
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(output["instances"]) for _, output in outputs)


def test_two_ranks_with_padding_equal_one(golden_store, outputs, tmp_path, run_ranks):
    def run(pairs, folder):
        return feed(make_evaluator(golden_store, tmp_path / folder, COUNTS), pairs).evaluate()

    alone = run(outputs, "1")
    shares = (outputs[0::2], [*outputs[1::2], outputs[0]])
    assert run_ranks(2, lambda rank: run(shares[rank], str("ab"[rank]))) == [alone, {}]
    assert not (tmp_path / "b").exists()
    for name in ("results.json", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_no_predictions(golden_store, expected, tmp_path, caplog):
    evaluator = make_evaluator(golden_store, output_dir=tmp_path)
    assert evaluator.evaluate()["bbox"]["mAP50"] == 0.0
    assert f"{len(golden_store)} of {len(golden_store)} images had no output" in caplog.text
    empty = Instances((HEIGHT, WIDTH))
    empty.pred_boxes = Boxes(torch.zeros(0, 4))
    empty.scores, empty.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    image = golden_store.image_ids[0].decode()
    assert feed(evaluator, [(record(image), {"instances": empty})]).evaluate()["bbox"]["mAP50"] == 0.0


def test_foreign_images_and_numbers_that_are_not_finite(golden_store, outputs, expected, caplog):
    broken = Instances((HEIGHT, WIDTH))
    broken.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, float("nan"), 1.0], [0.0, 0.0, 1.0, 1.0]]))
    broken.scores, broken.pred_classes = torch.tensor([0.5, float("inf")]), torch.zeros(2, dtype=torch.int64)
    image_id, output = outputs[0][0]["image_id"], outputs[0][1]["instances"]
    mixed = Instances.cat([output, broken])
    pairs = [(record("elsewhere"), {"instances": broken}), (record(image_id), {"instances": mixed})]
    results = feed(make_evaluator(golden_store), [*pairs, *outputs[1:]]).evaluate()["bbox"]
    assert results["mAP50"] == pytest.approx(100 * expected["official"]["mAP"], abs=1e-4)
    assert "1 outputs are of images that are not in" in caplog.text
    assert "2 detections with a box or score that is not finite" in caplog.text


def test_store_without_objects_is_nan_with_a_warning(tmp_path, caplog):
    columns = {
        "image_id": np.array(["a"]),
        "file_name": np.array(["a.jpg"]),
        "image_size": np.array([[HEIGHT, WIDTH]]),
        "object_offsets": np.zeros(2, np.int64),
        "box": np.zeros((0, 4)),
        "flags": np.zeros(0, np.uint8),
        "label_offsets": np.zeros(1, np.int64),
        "label": np.zeros(0, np.int64),
        "image_label_offsets": np.zeros(2, np.int64),
        "image_label": np.zeros(0, np.int64),
        "image_label_status": np.zeros(0, np.uint8),
    }
    store = write_store(tmp_path / "store", columns, ["x", "y"])
    evaluator = make_evaluator(store, output_dir=tmp_path / "out", train_counts=[1, 2])
    results = evaluator.evaluate()["bbox"]
    assert all(np.isnan(value) for value in results.values()) and "holds no object" in caplog.text
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["summary"]["bbox"]["mAP50"] is None and document["classes"][0]["AP"] is None


def test_options(golden_store, outputs, tmp_path):
    evaluator = make_evaluator(
        golden_store,
        output_dir=tmp_path,
        iou_threshold=0.75,
        group_of_weight=0.0,
        expand_predictions=False,
        write_predictions_csv=False,
    )
    results = feed(evaluator, outputs).evaluate()["bbox"]
    assert list(results) == ["mAP75", "mAP75_leaves"]
    assert not (tmp_path / "predictions.csv").exists()
    options = json.loads((tmp_path / "results.json").read_text())["metrics"]["open_images"]["options"]
    assert options == {
        "iou_threshold": 0.75,
        "group_of_weight": 0.0,
        "expand_predictions": False,
        "write_predictions_csv": False,
    }


def test_dataset_by_name_and_by_path(golden_store):
    assert len(make_evaluator(str(golden_store.path)).store) == len(golden_store)
    MetadataCatalog.get("evaluator_test_with_store").set(store_path=str(golden_store.path))
    MetadataCatalog.get("evaluator_test_without_store").set(thing_classes=["a"])
    try:
        store = make_evaluator("evaluator_test_with_store").store
        assert isinstance(store, AnnotationStore)
        with pytest.raises(ConfigError, match="has no annotation store"):
            make_evaluator("evaluator_test_without_store")
        with pytest.raises(DataError, match="no annotation store"):
            make_evaluator("no_such_data_set")
    finally:
        for name in ("evaluator_test_with_store", "evaluator_test_without_store"):
            MetadataCatalog.remove(name)


def test_training_counts_of_other_classes_are_refused(golden_store):
    with pytest.raises(ConfigError, match="the same classes"):
        make_evaluator(golden_store, train_counts=[1, 2, 3])
