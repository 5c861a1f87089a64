"""Which metric a data set gets."""

import copy

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from lvis_cases import make_content
from test_lvis_rules import flat_store, small_content

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
    """Alone, the metric of Open Images would forgive false positives where images have no labels."""
    assert names(make_lvis_store(coco_content())) == ("coco",)
    assert names(make_lvis_store(coco_content(), {"5": ["7"]}, "tree")) == ("open_images", "coco")
    labelled = copy.deepcopy(coco_content(pos_category_ids=[5], neg_category_ids=[7]))
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
    evaluator = build_evaluators(
        str(store.path), metrics=["lvis"], tasks=["segm"], lvis={"max_detections": 7}
    )
    (metric,) = evaluator.metrics
    assert (metric.tasks, metric.max_detections, metric.fixed_ap_detections) == (("segm",), 7, 10_000)


def test_false_positives_of_absent_classes_count(make_lvis_store):
    """A COCO file without image labels: every image has a wrong box of a class that it does not contain."""
    from test_lvis_rules import BOX, FAR, outputs_of

    content = coco_content()
    other = {**content["annotations"][0], "id": 2, "category_id": 7, "image_id": 2}
    content["images"].append({**content["images"][0], "id": 2, "file_name": "2.png"})
    content["annotations"].append(other)
    store = make_lvis_store(content)
    ((_, first),) = outputs_of(content, (5, BOX, 0.9), (7, FAR, 0.95))
    ((_, second),) = outputs_of(content, (7, BOX, 0.9), (5, FAR, 0.95))
    outputs = [({"image_id": "1"}, first), ({"image_id": "2"}, second)]
    results = {}
    for metric in ("coco", "open_images"):
        evaluator = build_evaluators(str(store.path), metrics=[metric])
        evaluator.process(*zip(*outputs, strict=True))
        results |= evaluator.evaluate()
    assert results["coco_bbox"]["AP50"] == pytest.approx(50) and results["bbox"]["mAP50"] == 100
    assert names(store) == ("coco",)


def test_data_registered_by_detectron2_get_its_evaluator(tmp_path):
    from detectron2.data.datasets import register_coco_instances

    (tmp_path / "data.json").write_text('{"images": [], "annotations": [], "categories": []}')
    register_coco_instances("metric_choice_coco", {}, str(tmp_path / "data.json"), str(tmp_path))
    try:
        assert isinstance(build_evaluators("metric_choice_coco", output_dir=tmp_path), COCOEvaluator)
    finally:
        DatasetCatalog.remove("metric_choice_coco")
        MetadataCatalog.remove("metric_choice_coco")
