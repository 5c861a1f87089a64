"""Each detector of the model zoo, with random weights, as ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_detectors import NUM_CLASSES, calibrate, tiny_detector

from longtail_det2 import model_zoo
from longtail_det2.config_files import load_cfg
from longtail_det2.data.images import read_image
from longtail_det2.data.statistics import ClassStatistics, write_statistics
from longtail_det2.engine.build import build_model
from longtail_det2.export import ExportedDetector, TrainedDetector, export_detector
from longtail_det2.export.graph import detect
from longtail_det2.export.source import to_input
from longtail_det2.modeling.anchor_priors import forget_measured_prior
from longtail_det2.modeling.score_thresholds import AdaptiveThresholds

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LIKE_ANOTHER = ("hybrid", "rfs", "softmax_shapes_lvis", "mask_rcnn_tiny_tsd", "cascade_rcnn_tiny_sampling")
"""Parts of names of models of which no part is new: other data, other samples of it, known heads together."""
IN_TEST_EXPORT = [f"shapes/faster_rcnn_tiny_{loss}_shapes.yaml" for loss in ("sigmoid", "softmax")]
YAML = [
    name
    for name in model_zoo.list_configs()
    if name.endswith(".yaml") and not any(one in name for one in LIKE_ANOTHER)
]
QUICK = (
    "mask_rcnn_tiny_seesaw_shapes_lvis",
    "retinanet_tiny_seesaw",
    "faster_rcnn_tiny_tsd",
)
"""Parts of names of models that together have each kind of head; the others take minutes."""
TINY = [
    pytest.param(name, marks=[] if any(one in name for one in QUICK) else pytest.mark.slow)
    for name in YAML
    if "tiny" in name and name not in IN_TEST_EXPORT
]
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


def export(model, cfg, size, image_file, output):
    """Export a detector, check that it detects what the eager one does, and load it."""
    detector = TrainedDetector(model, cfg, "some config", Path(__file__), min_size=size[0], max_size=size[1])
    differences = export_detector(detector, output, pictures=[image_file])
    assert all(one.detections[0] >= 5 and one.largest < 1e-4 for one in differences.values())
    return ExportedDetector(output)


def check(name, tmp_path, size, image_file):
    torch.manual_seed(0)
    cfg = load_cfg(name, ["MODEL.DEVICE", "cpu"])
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20  # which holds for dense detectors too
    cfg.DATASETS.STATISTICS = statistics_file(tmp_path / "statistics.json", cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    forget_measured_prior(cfg)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 1e-4  # which the scores of random weights pass
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        cfg.MODEL.RESNETS.NORM = "BN"  # which settles on an image
    image = read_image(image_file)
    model = calibrate(build_model(cfg), to_input(image, *size))
    for module in model.modules():
        if isinstance(module, AdaptiveThresholds):  # as if trained, with an unseen class in three
            module.counts.copy_(torch.arange(len(module.counts)) % 3 * 40)
            module.counts[-1] = 100_000
    exported = export(model, cfg, size, image_file, tmp_path / "out")
    if cfg.MODEL.MASK_ON:
        raw, side = exported.detect(to_input(image, *size)), 2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        assert raw["masks"].shape == (len(raw["scores"]), 1, side, side)
        found = exported(image)
        assert found.pred_masks.shape == (len(found), *image.shape[:2])


@pytest.mark.parametrize("name", TINY)
def test_tiny(name, tmp_path, picture_file):
    check(name, tmp_path, (128, 128), picture_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_r50_on_photographs(name, tmp_path, shared_dir):
    photograph = sorted((shared_dir / "data/photos/images/train").glob("*.jpg"))[0]
    check(name, tmp_path, (256, 426), photograph)


def test_concurrent_softmax_of_distant_logits(picture, picture_file, tmp_path):
    """With rates like a hierarchy's, and logits so far apart that some scores need a sum of their own."""
    spread = 200.0
    prefix = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.TEST"
    name = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "ConcurrentSoftmaxLoss")
    model, cfg = tiny_detector("softmax", *name, prefix, "softmax")  # there are no rates yet
    predictor = model.roi_heads.box_predictor
    loss = predictor.classification_loss
    # Class 0 is above all others: it never suppresses them, and they suppress it a little less.
    rates = torch.zeros(NUM_CLASSES, NUM_CLASSES)
    rates[1:, 0] = 1.0
    rates[0, 1:] = 0.1
    loss.test_form = "concurrent"
    loss.hold("rates", rates, (NUM_CLASSES, NUM_CLASSES))
    with torch.no_grad():
        predictor.cls_score.weight.mul_(spread)
        predictor.cls_score.bias[0] += spread - 1.0
    found = export(model, cfg, (96, 160), picture_file, tmp_path / "out").detect(to_input(picture, 96, 160))
    loss.test_form = "softmax"
    with torch.no_grad():
        plain = detect(model, to_input(picture, 96, 160))
    assert abs(float(found["scores"].sum()) - float(plain["scores"].sum())) > 0.1  # rates do matter here
