"""Each detector of the model zoo, with random weights, as ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longtail_det2 import model_zoo
from longtail_det2.config_files import load_cfg
from longtail_det2.data.images import read_image
from longtail_det2.data.statistics import ClassStatistics, write_statistics
from longtail_det2.engine.build import build_model
from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector
from longtail_det2.export.source import to_input

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SAMPLING = ("hybrid", "rfs")  # which models do not differ by
YAML = [
    name
    for name in model_zoo.list_configs()
    if name.endswith(".yaml") and not any(one in name for one in SAMPLING)
]
MASKS = "shapes/mask_rcnn_tiny_sigmoid_shapes.yaml"
TINY = [name for name in YAML if "tiny" in name and "softmax_shapes_lvis" not in name and name != MASKS]
LARGE = [
    name for name in YAML if name.startswith("openimages/") and "101" not in name and "sigmoid" not in name
]
LARGE += ["own_data/mask_rcnn_R_50_FPN.yaml"]
"""One of each family; the layers of LVIS's and of the methods' are among the tiny ones."""


def statistics_file(path, num_classes):
    """Statistics for losses that need them: every third object of a class is also of the next class."""
    pairs = 30 * np.eye(num_classes, dtype=np.int64)
    for label in range(num_classes - 1):
        pairs[label, label + 1] = pairs[label + 1, label] = 10
    counts = pairs.diagonal()
    ids = [str(label) for label in range(num_classes)]
    write_statistics(path, ClassStatistics(tuple(ids), 1000, counts, counts, pairs))
    return str(path)


def check(name, calibrator, tmp_path, size, picture_file):
    torch.manual_seed(0)
    cfg = load_cfg(name, ["MODEL.DEVICE", "cpu"])
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20  # which holds for dense detectors too
    cfg.DATASETS.STATISTICS = statistics_file(tmp_path / "statistics.json", cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 1e-4  # which the scores of random weights pass
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        cfg.MODEL.RESNETS.NORM = "BN"  # which settles on a picture
    model = calibrator(build_model(cfg), to_input(read_image(picture_file), *size))
    detector = TrainedDetector(model, cfg, name, Path(__file__), min_size=size[0], max_size=size[1])
    done = export_detector(detector, tmp_path / "out", pictures=[picture_file])
    assert all(one.detections[0] >= 5 and one.largest < 1e-4 for one in done.differences.values())


@pytest.mark.parametrize("name", TINY)
def test_tiny(name, calibrator, tmp_path, picture_file):
    check(name, calibrator, tmp_path, (128, 128), picture_file)


def test_masks(calibrator, tmp_path, picture_file):
    check(MASKS, calibrator, tmp_path, (128, 128), picture_file)
    detector = ExportedDetector(tmp_path / "out")
    raw = detector.detect(to_input(read_image(picture_file), 128, 128))
    assert raw["masks"].shape == (len(raw["scores"]), 1, 20, 20)
    found = detector(read_image(picture_file))
    assert found.pred_masks.shape == (len(found), 240, 320)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_r50_on_photographs(name, calibrator, tmp_path, shared_dir):
    photograph = sorted((shared_dir / "data/photos/images/train").glob("*.jpg"))[0]
    check(name, calibrator, tmp_path, (256, 426), photograph)
