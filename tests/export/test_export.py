import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector, load_detector
from longtail_det2.export.adapter import detect, make_adapter
from longtail_det2.export.exporting import drawn_picture, verify
from longtail_det2.export.graph import record_onnx
from longtail_det2.export.source import to_input
from longtail_det2.utils.errors import ConfigError, DataError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"


def source(model, cfg, **changes):
    """A detector that was not loaded from files."""
    return TrainedDetector(model, cfg, CONFIG, Path(__file__), min_size=96, max_size=160, **changes)


@pytest.fixture(scope="module")
def trained(run_folder, tiny_options):
    return load_detector(CONFIG, run_folder / "model_final.pth", tiny_options)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export_detector(trained, tmp_path_factory.mktemp("exported") / "onnx")


def eager(model, picture, size=(96, 160)):
    image = to_input(picture, *size)
    with torch.no_grad():
        return {key: value.numpy() for key, value in detect(model, [{"image": image}]).items()}, image


def test_outputs_are_those_of_eager_mode(exported):
    differences = exported.differences.values()
    assert len(differences) == 2
    for difference in differences:
        assert difference.detections[0] == difference.detections[1] > 20
        assert difference.unmatched == 0 and difference.largest < 1e-4


@pytest.mark.parametrize("size", [(32, 64), (97, 333), (224, 448)])
def test_any_size(exported, trained, size):
    picture = drawn_picture(*size)
    found = verify(trained, ExportedDetector(exported.folder), {"other": picture})
    assert all(one.largest < 1e-4 and one.detections[0] for one in found.values())
    wanted, image = eager(trained.model, picture, (0, 0))
    other = ExportedDetector(exported.folder).detect(image)
    assert image.shape[1:] == size and len(other["scores"]) == len(wanted["scores"])
    np.testing.assert_allclose(np.sort(other["scores"]), np.sort(wanted["scores"]), atol=1e-4)


def test_several_labels_a_box(exported, picture):
    """Class-agnostic boxes with independent scores: the same box comes with many of its labels."""
    found = ExportedDetector(exported.folder)(picture)
    boxes, counts = np.unique(found.pred_boxes.tensor.numpy().round(1), axis=0, return_counts=True)
    assert counts.max() >= 3
    best = boxes[counts.argmax()]
    labels = found.pred_classes[(found.pred_boxes.tensor.numpy().round(1) == best).all(axis=1)]
    assert len(labels) == len(labels.unique())


def test_detects_as_the_predictor_does(exported, trained, picture):
    """From a picture to boxes in that picture."""
    found = ExportedDetector(exported.folder)(picture)
    image = to_input(picture, 96, 160)
    with torch.no_grad():
        inputs = {"image": image, "height": picture.shape[0], "width": picture.shape[1]}
        wanted = trained.model([inputs])[0]["instances"]
    assert found.image_size == wanted.image_size == picture.shape[:2]
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
    same = found.pred_classes == wanted.pred_classes  # equal scores may change places
    assert same.float().mean() > 0.9
    gap = (found.pred_boxes.tensor - wanted.pred_boxes.tensor)[same].abs().max()
    assert gap < 1e-3


def test_folder_tells_everything(exported, trained, run_folder):
    document = json.loads((exported.folder / "metadata.json").read_text())
    assert document["input"]["channels"] == "BGR" and document["input"]["dtype"] == "float32"
    assert document["input"]["resize"] == {"shorter_side": 96, "longer_side_at_most": 160}
    assert document["input"]["normalised_inside"]["mean"] == [127.0] * 3
    assert document["classes"]["count"] == 9 and document["classes"]["ids"] == list(trained.class_ids)
    assert document["classes"]["names"][0] == "/M/0"
    assert document["scores_by"] == ["SigmoidBCELoss"]
    assert document["thresholds"] == {
        "score": 0.01,
        "nms": 0.5,
        "detections_per_image": 100,
        "candidates": 0,
    }
    assert [output["name"] for output in document["outputs"]] == ["boxes", "classes", "scores"]
    assert document["trained"]["weights"] == "model_final.pth" and len(document["trained"]["sha256"]) == 64
    assert {"longtail_det2", "torch"} <= set(document["versions"])
    config = (exported.folder / "config.yaml").read_text()
    assert "SigmoidBCELoss" in config and "/somewhere" not in config and str(run_folder) not in config


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("limit", [0, 100, 100000])
def test_losses_and_candidate_limits(detector_maker, tmp_path, loss, limit):
    model, cfg = detector_maker(loss, "MODEL.ROI_HEADS.PRE_NMS_TOPK_TEST", str(limit))
    done = export_detector(source(model, cfg), tmp_path / "out")
    assert all(one.largest < 1e-4 and one.detections[0] for one in done.differences.values())


def test_recorded_with_nothing_detected(detector_maker, tmp_path, picture, caplog):
    model, cfg = detector_maker()
    blank = np.zeros((96, 96, 3), dtype=np.uint8)
    predictor = model.roi_heads.box_predictor
    predictor.test_score_thresh = 0.999999
    with caplog.at_level(logging.WARNING):
        done = export_detector(source(model, cfg), tmp_path / "none")
    assert "the comparison says little" in caplog.text
    detector = ExportedDetector(done.folder)
    found = detector.detect(to_input(blank, 0, 0))
    assert {key: value.shape for key, value in found.items()} == {
        "boxes": (0, 4),
        "classes": (0,),
        "scores": (0,),
    }
    assert len(detector(picture)) == 0


def test_a_threshold_per_class(detector_maker, tmp_path, picture):
    model, cfg = detector_maker()
    limits = [2.0 if label % 2 else 0.01 for label in range(9)]
    model.roi_heads.box_predictor.test_score_thresh = limits
    done = export_detector(source(model, cfg), tmp_path / "out")
    assert all(one.largest < 1e-4 and one.detections[0] for one in done.differences.values())
    detector = ExportedDetector(done.folder)
    assert detector.metadata["thresholds"]["score"] == limits
    classes = detector.detect(to_input(picture, 96, 160))["classes"]
    assert len(classes) and not (classes % 2).any()


def test_without_proposals(detector_maker, tmp_path, picture):
    """Boxes below the smallest size leave no proposal at all."""
    model, _ = detector_maker()
    model.proposal_generator.min_box_size = 1e6
    path = tmp_path / "model"
    record_onnx(model, to_input(picture, 96, 160), path)
    image = to_input(picture, 64, 160).numpy()
    outputs = ort.InferenceSession(str(path)).run(None, {"image": image})
    assert [len(output) for output in outputs] == [0, 0, 0]


class TestNothingOfTraining:
    def test_onnx(self, trained, tmp_path, picture):
        record_onnx(trained.model, to_input(picture, 96, 160), tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        nodes = model.graph.node
        assert any(node.op_type == "Sigmoid" for node in nodes)
        names = [one.name for one in [*nodes, *model.graph.initializer]]
        assert not any("loss" in name.lower() for name in names)
        assert all(node.domain == "" for node in model.graph.node)  # standard operators only
        assert sum(node.op_type == "NonMaxSuppression" for node in model.graph.node) == 2
        assert len(model.graph.node) < 1000

    def test_state_of_a_loss_stays_behind(self, detector_maker, tmp_path, picture):
        model, _ = detector_maker()
        loss = model.roi_heads.box_predictor.classification_loss
        loss.register_buffer("counts", torch.full((123,), 7.0))
        loss.extra = nn.Linear(3, 5)
        record_onnx(model, to_input(picture, 96, 160), tmp_path / "model.onnx")
        shapes = [tuple(t.dims) for t in onnx.load(tmp_path / "model.onnx").graph.initializer]
        assert (123,) not in shapes and (5, 3) not in shapes
        assert "roi_heads.box_predictor.classification_loss.counts" in model.state_dict()  # the original

    def test_the_model_stays_as_it_was(self, detector_maker, tmp_path, picture):
        model, _ = detector_maker()
        model.train()
        image = to_input(picture, 96, 160)
        record_onnx(model, image, tmp_path / "model.onnx")
        assert model.training and all(module.training for module in model.backbone.modules())
        assert type(model.roi_heads.box_predictor.classification_loss).__name__ == "SigmoidBCELoss"
        assert len(model.state_dict()) and next(model.parameters()).requires_grad
        from detectron2.layers import batched_nms
        from detectron2.modeling.roi_heads import fast_rcnn

        assert fast_rcnn.batched_nms is batched_nms and "min" not in vars(fast_rcnn)


class TestScript:
    def command(self, repository, *arguments):
        script = [sys.executable, "-m", "longtail_det2.cli", "export", *map(str, arguments)]
        return subprocess.run(script, capture_output=True, text=True, timeout=300)

    def test_exports_and_reports(self, repository, run_folder, tmp_path, picture_file, tiny_options):
        folder = tmp_path / "out"
        arguments = ["--config-file", CONFIG, "--weights", run_folder / "model_final.pth", "--output", folder]
        done = self.command(repository, *arguments, "--sample-image", picture_file, *tiny_options)
        assert done.returncode == 0 and done.stderr == ""
        assert "picture.png at 128 x 96" in done.stdout and "largest difference" in done.stdout
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.yaml",
            "metadata.json",
            "model.onnx",
        ]

    def test_lazy_twin_exports_the_same(self, run_folder, tmp_path, picture_file):
        options = [
            "model.backbone.stage_channels=[8,8,8]",
            "model.roi_heads.box_head.fc_dims=[16,16]",
            "model.roi_heads.box_predictor.input_shape.channels=16",
            "dataloader.test.mapper.augmentations.0.short_edge_length=96",
            "dataloader.test.mapper.augmentations.0.max_size=160",
        ]
        detector = load_detector(CONFIG.replace(".yaml", ".py"), run_folder / "model_final.pth", options)
        assert (detector.image_format, detector.min_size, detector.max_size) == ("BGR", 96, 160)
        done = export_detector(detector, tmp_path / "lazy", pictures=[picture_file])
        assert all(one.largest < 1e-4 for one in done.differences.values())
        assert "_target_" in (tmp_path / "lazy/config.yaml").read_text()


def test_outputs_that_differ_write_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ExportedDetector, "detect", lambda self, image: wrong)
    wrong = {
        "boxes": np.zeros((1, 4), np.float32),
        "scores": np.ones(1, np.float32),
        "classes": np.zeros(1, int),
    }
    with pytest.raises(ConfigError, match=r"differs from eager PyTorch by more than 0\.0001"):
        export_detector(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_errors(trained, run_folder, tmp_path, tiny_options, picture_file):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export_detector(trained, tmp_path / "there")
    with pytest.raises(DataError, match="image not found"):
        export_detector(trained, tmp_path / "out", pictures=[tmp_path / "none.jpg"])
    with pytest.raises(ConfigError, match="no weights file"):
        load_detector(CONFIG, tmp_path / "none.pth", tiny_options)
    with pytest.raises(ConfigError, match=r"nope\.yaml is no file"):
        load_detector("nope.yaml")
    with pytest.raises(ConfigError, match="no published weights"):
        load_detector(CONFIG, "", tiny_options)
    with pytest.raises(ConfigError, match="is no exported model"):
        ExportedDetector(tmp_path)
    half = {"backbone.stem.weight": torch.zeros(1)}
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(ConfigError, match="of another model, or of a backbone alone"):
        load_detector(CONFIG, tmp_path / "half.pth", [*tiny_options, "MODEL.ROI_HEADS.NUM_CLASSES", "9"])
    (tmp_path / "lazy.yaml").write_text("model: {_target_: os.system}\n")
    with pytest.raises(ConfigError, match="saved form of a lazy config"):
        load_detector(str(tmp_path / "lazy.yaml"), run_folder / "model_final.pth")


def test_missing_packages(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx"):
        export_detector(trained, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "detectron2.export", None)
    with pytest.raises(ConfigError, match=r"detectron2\.export cannot be imported"):
        make_adapter(trained.model, torch.zeros(3, 8, 8))


def test_a_model_without_detections():
    with pytest.raises(ConfigError, match="does not detect boxes"):
        detect(_Segmenter(), [{"image": torch.zeros(3, 8, 8)}])


class _Segmenter(nn.Module):
    def forward(self, inputs):
        return [{"sem_seg": inputs[0]["image"]}]
