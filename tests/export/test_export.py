import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling.roi_heads import fast_rcnn
from model_factories import tiny_classifier
from tiny_detectors import TINY, drawn_picture, tiny_detector
from torch import nn

from longtail_det2.cli import main
from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector, load_detector
from longtail_det2.export.compare import compare_detections
from longtail_det2.export.graph import detect, record_onnx
from longtail_det2.export.source import to_input
from longtail_det2.utils.errors import ConfigError, DataError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"
OPTIONS = TINY[:2] + TINY[4:]  # the weights know the number of classes


@pytest.fixture(scope="module")
def trained(run_folder):
    return load_detector(CONFIG, run_folder / "model_final.pth", OPTIONS)


@pytest.fixture(scope="module")
def exported(trained, picture_file, tmp_path_factory):
    """The exported model, its folder, and how it differs from the eager one."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    differences = export_detector(trained, folder, pictures=[picture_file])
    return ExportedDetector(folder), folder, differences


def of_tiny(model, cfg):
    return TrainedDetector(model, cfg, CONFIG, Path(__file__), min_size=96, max_size=160)


def test_outputs_are_those_of_eager_mode(exported):
    _, _, differences = exported
    assert list(differences) == ["picture.png at 128 x 96", "picture.png at 96 x 72"]
    for difference in differences.values():
        assert difference.detections[0] == difference.detections[1] > 20
        assert difference.unmatched == 0 and difference.largest < 1e-4


@pytest.mark.parametrize("size", [(16, 24), (97, 333), (450, 640)])
def test_any_size(exported, trained, size):
    image = to_input(drawn_picture(*size), 0, 0)
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in detect(trained.model, image).items()}
    difference = compare_detections(wanted, exported[0].detect(image), size)
    assert image.shape[1:] == size and difference.detections[0] and difference.largest < 1e-4


def test_several_labels_a_box(exported, picture):
    """Class-agnostic boxes with independent scores: the same box comes with many of its labels."""
    found = exported[0](picture)
    rounded = found.pred_boxes.tensor.numpy().round(1)
    boxes, counts = np.unique(rounded, axis=0, return_counts=True)
    assert counts.max() >= 3
    labels = found.pred_classes[(rounded == boxes[counts.argmax()]).all(axis=1)]
    assert len(labels) == len(labels.unique())


def test_detects_as_the_predictor_does(exported, trained, picture):
    """From an image to boxes in that image."""
    found = exported[0](picture)
    inputs = {"image": to_input(picture, 96, 160), "height": picture.shape[0], "width": picture.shape[1]}
    with torch.no_grad():
        wanted = trained.model([inputs])[0]["instances"]
    assert found.image_size == wanted.image_size == picture.shape[:2]
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
    same = found.pred_classes == wanted.pred_classes  # equal scores may change places
    assert same.float().mean() > 0.9
    assert (found.pred_boxes.tensor - wanted.pred_boxes.tensor)[same].abs().max() < 1e-3


@pytest.mark.parametrize("fixed_size", [pytest.param((), marks=pytest.mark.slow), (32, 48)])
def test_classifier_of_images(picture, picture_file, tmp_path, fixed_size):
    model, cfg = tiny_classifier()
    trained = TrainedDetector(model, cfg, CONFIG, Path(__file__), (), (), "BGR", 64, 160, fixed_size)
    differences = export_detector(trained, tmp_path / "onnx", pictures=[picture_file])
    assert list(differences) == [f"picture.png at {size}" for size in (
        ["48 x 32"] if fixed_size else ["85 x 64", "64 x 48"]
    )]  # fmt: skip
    loaded = ExportedDetector(tmp_path / "onnx")
    about = loaded.metadata
    sides = {"shorter_side": 64, "longer_side_at_most": 160}
    assert about["input"]["resize"] == ({"height": 32, "width": 48} if fixed_size else sides)
    assert [output["name"] for output in about["outputs"]] == ["scores"] and about["classes"]["count"] == 6
    found = loaded(picture)
    with torch.no_grad():
        wanted = model([{"image": trained.input_of(picture)}])[0]["scores"]
    torch.testing.assert_close(found.scores, wanted[found.pred_classes], atol=1e-5, rtol=0)
    assert sorted(found.pred_classes.tolist()) == list(range(6)) and not found.has("pred_boxes")
    assert (found.scores.diff() <= 0).all() and found.scores[0] - found.scores[-1] > 0.01


def test_folder_tells_everything(exported, trained, run_folder):
    _, folder, _ = exported
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "metadata.json", "model.onnx"]
    document = json.loads((folder / "metadata.json").read_text())
    assert document["input"]["channels"] == "BGR" and document["input"]["dtype"] == "float32"
    assert document["input"]["resize"] == {"shorter_side": 96, "longer_side_at_most": 160}
    assert document["input"]["normalised_inside"]["mean"] == [127.0] * 3
    assert document["classes"]["count"] == 9 and document["classes"]["ids"] == list(trained.class_ids)
    assert document["classes"]["names"][0] == "/M/0"
    assert document["scores_by"] == ["SigmoidBCELoss"]
    wanted = {"score": 0.01, "nms": 0.5, "detections_per_image": 100, "candidates": 0}
    assert document["thresholds"] == wanted
    assert [output["name"] for output in document["outputs"]] == ["boxes", "classes", "scores"]
    assert document["trained"]["weights"] == "model_final.pth" and len(document["trained"]["sha256"]) == 64
    config = (folder / "config.yaml").read_text()
    assert "SigmoidBCELoss" in config and "/somewhere" not in config and str(run_folder) not in config


def test_graph_has_standard_operators_and_nothing_of_the_loss(exported):
    graph = onnx.load(exported[1] / "model.onnx").graph
    assert any(node.op_type == "Sigmoid" for node in graph.node)
    assert all(node.domain == "" for node in graph.node)
    assert not any("loss" in one.name.lower() for one in [*graph.node, *graph.initializer])


def test_thresholds_per_class_and_limited_candidates(picture_file, picture, tmp_path, recwarn):
    model, cfg = tiny_detector("softmax", "MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST", "100")
    limits = [2.0 if label % 2 else 0.01 for label in range(9)]
    model.roi_heads.box_predictor.test_score_thresh = limits
    model.roi_heads.for_training = nn.Linear(5, 5)
    done = export_detector(of_tiny(model, cfg), tmp_path / "out", pictures=[picture_file])
    assert all(one.largest < 1e-4 and one.detections[0] for one in done.values())
    loaded = ExportedDetector(tmp_path / "out")
    assert loaded.metadata["thresholds"]["score"] == limits
    classes = loaded.detect(to_input(picture, 96, 160))["classes"]
    assert len(classes) and not (classes % 2).any()
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    assert graph.initializer and not any("for_training" in one.name for one in graph.initializer)
    # Recording leaves no trace.
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert fast_rcnn.fast_rcnn_inference_single_image.__module__ == fast_rcnn.__name__
    assert not [one for one in recwarn if "side effects" in str(one.message)]


@pytest.mark.parametrize("lacking", ["proposals", "scores"])
def test_nothing_detected(lacking, picture_file, picture, tmp_path, caplog):
    model, cfg = tiny_detector()
    if lacking == "proposals":
        model.proposal_generator.min_box_size = 1e6
    else:
        model.roi_heads.box_predictor.test_score_thresh = 0.999999
    with caplog.at_level(logging.WARNING):
        export_detector(of_tiny(model, cfg), tmp_path / "none", pictures=[picture_file])
    assert "the comparison says little" in caplog.text
    loaded = ExportedDetector(tmp_path / "none")
    found = loaded.detect(torch.zeros(3, 64, 85))
    assert [found[name].shape for name in sorted(found)] == [(0, 4), (0,), (0,)]
    assert len(loaded(picture)) == 0


def test_command_with_a_lazy_config_on_its_own_test_images(
    run_folder, picture_file, tmp_path, monkeypatch, capsys
):
    options = [
        "model.backbone.stage_channels=[8,8,8]",
        "model.roi_heads.box_head.fc_dims=[16,16]",
        "model.roi_heads.box_predictor.input_shape.channels=16",
        "dataloader.test.mapper.augmentations.0.short_edge_length=96",
        "dataloader.test.mapper.augmentations.0.max_size=160",
    ]
    records = {"shapes_validation": [{"file_name": str(picture_file)}]}
    monkeypatch.setattr(DatasetCatalog, "get", records.__getitem__)
    files = ["--weights", str(run_folder / "model_final.pth"), "--output", str(tmp_path / "lazy")]
    assert main(["export", "--config-file", CONFIG.replace(".yaml", ".py"), *files, *options]) == 0
    told = capsys.readouterr()
    assert "picture.png at 128 x 96" in told.out and "largest difference" in told.out and told.err == ""
    assert "_target_" in (tmp_path / "lazy/config.yaml").read_text()
    assert json.loads((tmp_path / "lazy/metadata.json").read_text())["input"]["channels"] == "BGR"


def test_outputs_that_differ_write_nothing(trained, exported, picture_file, tmp_path, monkeypatch):
    def copied(path):
        shutil.copy(exported[1] / "model.onnx", path)
        return sorted(wrong)

    wrong = {
        "boxes": np.zeros((1, 4), np.float32),
        "scores": np.ones(1, np.float32),
        "classes": np.zeros(1, int),
    }
    monkeypatch.setattr(ExportedDetector, "detect", lambda self, image: wrong)
    monkeypatch.setattr("longtail_det2.export.exporting.record_onnx", lambda model, path, size: copied(path))
    with pytest.raises(ConfigError, match="differs from eager PyTorch"):
        export_detector(trained, tmp_path / "out", pictures=[picture_file])
    assert not list(tmp_path.iterdir())


def test_errors(trained, run_folder, tmp_path, monkeypatch):
    def fails(pattern, action, *arguments, **options):
        with pytest.raises((ConfigError, DataError), match=pattern):
            action(*arguments, **options)

    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    fails("nothing is overwritten", export_detector, trained, tmp_path / "there")
    fails("not found", export_detector, trained, tmp_path / "out", pictures=[tmp_path / "none.jpg"])
    monkeypatch.setattr(DatasetCatalog, "get", {}.__getitem__)
    fails("--sample-image", export_detector, trained, tmp_path / "out")
    fails("no weights file", load_detector, CONFIG, tmp_path / "none.pth", OPTIONS)
    fails(r"nope\.yaml is no file", load_detector, "nope.yaml")
    fails("no published weights", load_detector, CONFIG, "", OPTIONS)
    fails("is no folder of longtail-det2 export", ExportedDetector, tmp_path)
    (tmp_path / "metadata.json").write_text('{"format": "other"}')
    fails("no metadata of format", ExportedDetector, tmp_path)
    weights = trained.model.state_dict()
    half = {name: value for name, value in weights.items() if name.startswith("backbone")}
    torch.save(half, tmp_path / "half.pth")
    fails("lacks .* parameters", load_detector, CONFIG, tmp_path / "half.pth", TINY)
    (tmp_path / "lazy.yaml").write_text("model: {_target_: os.system}\n")
    saved, checkpoint = str(tmp_path / "lazy.yaml"), run_folder / "model_final.pth"
    fails("saved form of a lazy config", load_detector, saved, checkpoint)
    fails("gives neither boxes nor scores", detect, nn.Flatten(), torch.zeros(3, 8, 8))


def test_missing_packages(trained, exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxscript"):
        record_onnx(trained.model, tmp_path / "out")
    with pytest.raises(ConfigError, match="onnxruntime"):
        ExportedDetector(exported[1])
