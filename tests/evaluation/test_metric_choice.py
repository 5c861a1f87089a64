"""Which metric a data set gets."""

import numpy as np
import pytest
from detectron2.evaluation import COCOEvaluator
from lvis_cases import feed, make_content, make_outputs
from test_lvis_rules import BOX, FAR, flat_store, row, small_content

from longtail_det2.data.store import write_store
from longtail_det2.evaluation.evaluator import build_evaluators, default_metrics


def coco_content(**image):
    """The small LVIS file in COCO's form."""
    content = small_content()
    content["images"][0] = {k: v for k, v in content["images"][0].items() if "category_ids" not in k} | image
    for one in content["categories"]:
        del one["frequency"]
    return content


def names(store, **options):
    return tuple(metric.name for metric in build_evaluators(str(store.path), **options).metrics)


def test_lvis_files_get_lvis_metric(make_lvis_store):
    content = make_content("plain")
    assert names(make_lvis_store(content)) == ("lvis",)
    hierarchy = {"class 1": ["class 0"]}
    assert names(make_lvis_store(content, hierarchy, "with_hierarchy")) == ("open_images", "lvis")


def test_coco_files_get_coco_metric(make_lvis_store):
    assert names(make_lvis_store(coco_content())) == ("coco",)
    assert names(make_lvis_store(coco_content(), {"5": ["7"]}, "tree")) == ("open_images", "coco")
    labelled = coco_content(pos_category_ids=[5], neg_category_ids=[7])
    assert names(make_lvis_store(labelled, name="labelled")) == ("open_images", "coco")


def test_open_images_files_get_its_metric(tmp_path):
    store = flat_store(tmp_path / "plain")
    assert store.form == "open_images" and not len(store.image_labels)
    assert names(store) == ("open_images", "coco")
    columns = {path.stem: np.load(path) for path in store.path.glob("*.npy")}
    columns |= {"image_label_offsets": np.array([0, 1]), "image_label": np.array([1])}
    columns["image_label_status"] = np.zeros(1, np.uint8)
    labelled = write_store(tmp_path / "labelled", columns, store.class_ids)
    assert names(labelled) == ("open_images",)
    assert default_metrics(labelled, ("bbox", "segm")) == ("open_images", "coco")


def test_names_override(make_lvis_store):
    store = make_lvis_store(make_content("plain"))
    assert names(store, metrics=["coco", "open_images"]) == ("coco", "open_images")
    options = {"metrics": ["lvis"], "tasks": ["segm"], "lvis": {"max_detections": 7}}
    (metric,) = build_evaluators(str(store.path), **options).metrics
    assert (metric.tasks, metric.max_detections, metric.fixed_ap_detections) == (("segm",), 7, 10_000)


def test_false_positives_of_absent_classes_count(make_lvis_store):
    """A COCO file without image labels: Open Images' metric forgives a wrong box in each image."""
    content = coco_content()
    content["images"].append({**content["images"][0], "id": 2, "file_name": "2.png"})
    content["annotations"].append({**content["annotations"][0], "id": 2, "category_id": 7, "image_id": 2})
    store = make_lvis_store(content)
    rows = [row(5, BOX, 0.9), row(7, FAR, 0.95), row(7, BOX, 0.9, image=2), row(5, FAR, 0.95, image=2)]
    evaluators = build_evaluators(str(store.path), metrics=["coco", "open_images"])
    results = feed(evaluators, make_outputs(content, rows)).evaluate()
    assert results["coco_bbox"]["AP50"] == pytest.approx(50) and results["bbox"]["mAP50"] == 100
    assert names(store) == ("coco",)


def test_data_registered_by_detectron2_get_its_evaluator(tmp_path):
    from detectron2.data.datasets import register_coco_instances

    (tmp_path / "data.json").write_text('{"images": [], "annotations": [], "categories": []}')
    register_coco_instances("metric_choice_coco", {}, str(tmp_path / "data.json"), str(tmp_path))
    assert isinstance(build_evaluators("metric_choice_coco", output_dir=tmp_path), COCOEvaluator)
