import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from torch import nn

from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector, load_detector
from longtail_det2.export.exporting import verify
from longtail_det2.export.graph import detect, record_onnx
from longtail_det2.export.source import to_input
from longtail_det2.utils.errors import ConfigError, DataError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"


@pytest.fixture(scope="module")
def trained(run_folder, tiny_options):
    return load_detector(CONFIG, run_folder / "model_final.pth", tiny_options)


@pytest.fixture(scope="module")
def exported(trained, picture_file, tmp_path_factory):
    return export_detector(trained, tmp_path_factory.mktemp("exported") / "onnx", pictures=[picture_file])


def test_outputs_are_those_of_eager_mode(exported):
    assert list(exported.differences) == ["picture.png at 128 x 96", "picture.png at 96 x 72"]
    for difference in exported.differences.values():
        assert difference.detections[0] == difference.detections[1] > 20
        assert difference.unmatched == 0 and difference.largest < 1e-4


@pytest.mark.parametrize("size", [(16, 24), (97, 333), (450, 640)])
def test_any_size(exported, trained, picture_maker, size):
    found = verify(trained, ExportedDetector(exported.folder), {"other": picture_maker(*size)})
    assert all(one.largest < 1e-4 and one.detections[0] for one in found.values())
    image = to_input(picture_maker(*size), 0, 0)
    wanted = detect(trained.model, image)["scores"].detach().numpy()
    scores = ExportedDetector(exported.folder).detect(image)["scores"]
    assert image.shape[1:] == size
    np.testing.assert_allclose(np.sort(scores), np.sort(wanted), atol=1e-4)


def test_several_labels_a_box(exported, picture):
    """Class-agnostic boxes with independent scores: the same box comes with many of its labels."""
    found = ExportedDetector(exported.folder)(picture)
    rounded = found.pred_boxes.tensor.numpy().round(1)
    boxes, counts = np.unique(rounded, axis=0, return_counts=True)
    assert counts.max() >= 3
    labels = found.pred_classes[(rounded == boxes[counts.argmax()]).all(axis=1)]
    assert len(labels) == len(labels.unique())


def test_detects_as_the_predictor_does(exported, trained, picture):
    """From an image to boxes in that image."""
    found = ExportedDetector(exported.folder)(picture)
    inputs = {"image": to_input(picture, 96, 160), "height": picture.shape[0], "width": picture.shape[1]}
    with torch.no_grad():
        wanted = trained.model([inputs])[0]["instances"]
    assert found.image_size == wanted.image_size == picture.shape[:2]
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
    same = found.pred_classes == wanted.pred_classes  # equal scores may change places
    assert same.float().mean() > 0.9
    assert (found.pred_boxes.tensor - wanted.pred_boxes.tensor)[same].abs().max() < 1e-3


def test_folder_tells_everything(exported, trained, run_folder):
    document = json.loads((exported.folder / "metadata.json").read_text())
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
    config = (exported.folder / "config.yaml").read_text()
    assert "SigmoidBCELoss" in config and "/somewhere" not in config and str(run_folder) not in config


def test_graph_has_standard_operators_and_nothing_of_the_loss(exported):
    graph = onnx.load(exported.folder / "model.onnx").graph
    assert any(node.op_type == "Sigmoid" for node in graph.node)
    assert all(node.domain == "" for node in graph.node)
    assert not any("loss" in one.name.lower() for one in [*graph.node, *graph.initializer])


def test_thresholds_per_class_and_limited_candidates(detector_maker, picture_file, picture, tmp_path):
    model, cfg = detector_maker("softmax", "MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST", "100")
    limits = [2.0 if label % 2 else 0.01 for label in range(9)]
    model.roi_heads.box_predictor.test_score_thresh = limits
    detector = TrainedDetector(model, cfg, CONFIG, Path(__file__), min_size=96, max_size=160)
    done = export_detector(detector, tmp_path / "out", pictures=[picture_file])
    assert all(one.largest < 1e-4 and one.detections[0] for one in done.differences.values())
    loaded = ExportedDetector(done.folder)
    assert loaded.metadata["thresholds"]["score"] == limits
    classes = loaded.detect(to_input(picture, 96, 160))["classes"]
    assert len(classes) and not (classes % 2).any()


class TestNothing:
    def test_detected(self, detector_maker, picture_file, picture, tmp_path, caplog):
        model, cfg = detector_maker()
        model.roi_heads.box_predictor.test_score_thresh = 0.999999
        detector = TrainedDetector(model, cfg, CONFIG, Path(__file__), min_size=96, max_size=160)
        with caplog.at_level(logging.WARNING):
            done = export_detector(detector, tmp_path / "none", pictures=[picture_file])
        assert "the comparison says little" in caplog.text
        found = ExportedDetector(done.folder).detect(torch.zeros(3, 96, 96))
        assert [found[name].shape for name in sorted(found)] == [(0, 4), (0,), (0,)]
        assert len(ExportedDetector(done.folder)(picture)) == 0

    def test_proposed(self, detector_maker, tmp_path):
        """Boxes below the smallest size leave no proposal at all; and the model stays as it was."""
        model, _ = detector_maker()
        model.train()
        model.proposal_generator.min_box_size = 1e6
        record_onnx(model, tmp_path / "model.onnx")
        image = np.zeros((3, 64, 85), np.float32)
        outputs = ort.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"image": image})
        assert [len(output) for output in outputs] == [0, 0, 0]
        assert all(module.training for module in model.backbone.modules())
        assert next(model.parameters()).requires_grad
        from detectron2.modeling.roi_heads import fast_rcnn

        assert fast_rcnn.batched_nms.__module__ == "detectron2.layers.nms" and "len" not in vars(fast_rcnn)


def test_lazy_config_on_its_own_test_images(run_folder, picture_file, tmp_path, monkeypatch):
    options = [
        "model.backbone.stage_channels=[8,8,8]",
        "model.roi_heads.box_head.fc_dims=[16,16]",
        "model.roi_heads.box_predictor.input_shape.channels=16",
        "dataloader.test.mapper.augmentations.0.short_edge_length=96",
        "dataloader.test.mapper.augmentations.0.max_size=160",
    ]
    detector = load_detector(CONFIG.replace(".yaml", ".py"), run_folder / "model_final.pth", options)
    assert (detector.image_format, detector.min_size, detector.max_size) == ("BGR", 96, 160)
    records = {"shapes_validation": [{"file_name": str(picture_file)}]}
    monkeypatch.setattr(DatasetCatalog, "get", records.__getitem__)
    done = export_detector(detector, tmp_path / "lazy")
    assert len(done.differences) == 2 and all(one.largest < 1e-4 for one in done.differences.values())
    assert "_target_" in (tmp_path / "lazy/config.yaml").read_text()


def test_command(run_folder, tmp_path, picture_file, tiny_options):
    script = [sys.executable, "-m", "longtail_det2.cli", "export", "--sample-image", picture_file]
    files = ["--weights", run_folder / "model_final.pth", "--output", tmp_path / "out"]
    command = [*script, "--config-file", CONFIG, *files, *tiny_options]
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert "picture.png at 128 x 96" in done.stdout and "largest difference" in done.stdout
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.yaml", "metadata.json", "model.onnx"]


def test_outputs_that_differ_write_nothing(trained, exported, picture_file, tmp_path, monkeypatch):
    def copied(path):
        shutil.copy(exported.folder / "model.onnx", path)
        return sorted(wrong)

    wrong = {
        "boxes": np.zeros((1, 4), np.float32),
        "scores": np.ones(1, np.float32),
        "classes": np.zeros(1, int),
    }
    monkeypatch.setattr(ExportedDetector, "detect", lambda self, image: wrong)
    monkeypatch.setattr("longtail_det2.export.exporting.record_onnx", lambda model, path: copied(path))
    with pytest.raises(ConfigError, match="differs from eager PyTorch"):
        export_detector(trained, tmp_path / "out", pictures=[picture_file])
    assert not list(tmp_path.iterdir())


def test_errors(trained, run_folder, tmp_path, tiny_options, monkeypatch):
    def fails(pattern, action, *arguments, **options):
        with pytest.raises((ConfigError, DataError), match=pattern):
            action(*arguments, **options)

    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    fails("nothing is overwritten", export_detector, trained, tmp_path / "there")
    fails("not found", export_detector, trained, tmp_path / "out", pictures=[tmp_path / "none.jpg"])
    monkeypatch.setattr(DatasetCatalog, "get", {}.__getitem__)
    fails("--sample-image", export_detector, trained, tmp_path / "out")
    fails("no weights file", load_detector, CONFIG, tmp_path / "none.pth", tiny_options)
    fails(r"nope\.yaml is no file", load_detector, "nope.yaml")
    fails("no published weights", load_detector, CONFIG, "", tiny_options)
    fails("is no folder of longtail-det2 export", ExportedDetector, tmp_path)
    (tmp_path / "metadata.json").write_text('{"format": "other"}')
    fails("no metadata of format", ExportedDetector, tmp_path)
    torch.save({"backbone.stem.weight": torch.zeros(1)}, tmp_path / "half.pth")
    options = [*tiny_options, "MODEL.ROI_HEADS.NUM_CLASSES", "9"]
    fails("of a backbone alone", load_detector, CONFIG, tmp_path / "half.pth", options)
    (tmp_path / "lazy.yaml").write_text("model: {_target_: os.system}\n")
    fails(
        "saved form of a lazy config",
        load_detector,
        str(tmp_path / "lazy.yaml"),
        run_folder / "model_final.pth",
    )
    fails("does not detect boxes", detect, nn.Flatten(), torch.zeros(3, 8, 8))


def test_missing_packages(trained, exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxscript"):
        record_onnx(trained.model, tmp_path / "out")
    with pytest.raises(ConfigError, match="onnxruntime"):
        ExportedDetector(exported.folder)
