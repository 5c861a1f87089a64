"""Anchors of an epoch, counted without network and pixels, against loops over what training really sees."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from factories import store_columns
from model_factories import use_detector
from PIL import Image

from longtail_det2 import cli
from longtail_det2.cli.anchor_statistics import anchor_lines
from longtail_det2.config_files import load_cfg
from longtail_det2.data import dataset_mapper
from longtail_det2.data.build import build_train_loader_from_config
from longtail_det2.data.datasets.builtin import register_datasets
from longtail_det2.data.statistics import (
    AnchorStatistics,
    ClassStatistics,
    compute_statistics,
    read_statistics,
)
from longtail_det2.data.store import write_store
from longtail_det2.engine import trainer
from longtail_det2.engine.anchor_statistics import _SizesAlone, count_anchors, measure_anchors
from longtail_det2.engine.build import build_model
from longtail_det2.modeling.anchor_priors import anchor_prior, anchor_settings, measured_prior
from longtail_det2.utils.errors import ConfigError

IDS = ("animal", "cat", "dog", "ball")
BACKGROUND, IGNORED = -1, -2
MEASURED = "MODEL.DENSE_HEAD.CLASSIFICATION_LOSS SigmoidBCELoss MODEL.DENSE_HEAD.PRIOR per_class"
MEASURED_RPN = (
    "MODEL.PROPOSAL_GENERATOR.NAME NormalizedRPN MODEL.RPN.PRIOR_PROB 0. MODEL.RPN.BOUNDARY_THRESH 0"
)
"""Configs that want the priors which are measured."""


def by_overlap(anchors, boxes, low, high):
    """The object of each anchor by Detectron2's rule: best overlap, and each object's best anchors."""
    corners = (
        np.maximum(anchors[:, None, :2], boxes[None, :, :2]),
        np.minimum(anchors[:, None, 2:], boxes[None, :, 2:]),
    )
    shared = (corners[1] - corners[0]).clip(0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, anchors)]
    overlap = shared / (areas[0] + areas[1][:, None] - shared)
    matches = []
    for row in overlap:
        positive = len(row) and (row.max() >= high or (row == overlap.max(0)).any())
        best = row.max() if len(row) else 0.0
        matches.append(row.argmax() if positive else BACKGROUND if best < low else IGNORED)
    return matches


def by_centre(anchors, boxes, radius):
    """The smallest object around each location, where all objects are of the one level."""
    matches = []
    for x0, y0, x1, y1 in anchors:
        x, y, found = (x0 + x1) / 2, (y0 + y1) / 2, []
        for number, (left, top, right, bottom) in enumerate(boxes):
            distance = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            if left < x < right and top < y < bottom and distance < radius * (x1 - x0):
                found.append(((right - left) * (bottom - top), number))
        matches.append(min(found)[1] if found else BACKGROUND)
    return matches


def slow_counts(cfg, model, batches):
    """(n_j, N_f, N) of mapped batches, their pixels through the backbone."""
    positives, foreground, number = np.zeros(4, int), 0, 0
    rpn = getattr(model, "proposal_generator", None)
    for batch in batches:
        with torch.no_grad():
            features = model.eval().backbone(model.preprocess_image(batch).tensor)
        anchors = (rpn or model).anchor_generator([features["p3"]])[0].tensor.numpy()
        for objects in (image["instances"] for image in batch):
            boxes = objects.gt_boxes.tensor.numpy()
            if cfg.MODEL.META_ARCHITECTURE == "MultiLabelFCOS":
                matches = by_centre(anchors, boxes, cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS)
            else:
                matches = by_overlap(
                    anchors, boxes, *(cfg.MODEL.RPN if rpn else cfg.MODEL.RETINANET).IOU_THRESHOLDS
                )
            if rpn and cfg.MODEL.RPN.BOUNDARY_THRESH >= 0:
                height, width = objects.image_size
                outside = (anchors < 0).any(1) | (anchors[:, 2] >= width) | (anchors[:, 3] >= height)
                matches = np.where(outside, IGNORED, matches)
            for match in matches:
                number += match != IGNORED
                foreground += match >= 0
                positives += (objects.gt_labels[match] == 1).numpy() if match >= 0 else 0
    return positives.tolist(), foreground, number


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A store of six pictures with 0 to 5 objects of one or two labels."""
    path, generator = tmp_path_factory.mktemp("crowd"), np.random.default_rng(0)
    objects = []
    for picture in range(6):
        Image.new("RGB", (64, 64)).save(path / f"{picture}.png")
        for _ in range(picture):
            corner = generator.uniform(0, 0.6, 2)
            box = np.concatenate([corner, corner + generator.uniform(0.2, 0.4, 2)])
            labels = generator.choice(4, generator.integers(1, 3), replace=False).tolist()
            objects.append((picture, box, labels, 0))
    columns = store_columns([str(picture) for picture in range(6)], (64, 64), objects)
    write_store(path / "store", columns, IDS, parents={"cat": ["animal"], "dog": ["animal"]}, image_root=path)
    return path / "store"


@pytest.fixture
def make_cfg(yaml_args, crowd):
    """Function: (detector, options...) -> config of a tiny one, trained on crops in several sizes."""

    def make(detector, *options):
        options = ("DATASETS.STORES", f"crowd={crowd}", "DATASETS.TRAIN", "crowd", *options)
        args = yaml_args(
            "INPUT.MIN_SIZE_TRAIN", "48,64,96", "INPUT.CROP.ENABLED", "True", "SEED", "5", *options
        )
        cfg = use_detector(load_cfg(args.config_file, args.opts), detector)
        register_datasets(stores=cfg.DATASETS.STORES)
        return cfg

    return make


@pytest.mark.parametrize("keep_empty", [True, False])
@pytest.mark.parametrize(
    ("detector", "options"),
    [
        ("MultiLabelRetinaNet", "MODEL.RETINANET.IOU_THRESHOLDS 0.3,0.5 DATALOADER.NUM_WORKERS 1"),
        ("MultiLabelRetinaNet", MEASURED),
        ("MultiLabelFCOS", "SOLVER.IMS_PER_BATCH 3"),
        ("MultiLabelROIHeads", ""),
        ("MultiLabelROIHeads", MEASURED_RPN),
    ],
)
def test_counts_are_those_of_training_with_pixels(make_cfg, monkeypatch, detector, options, keep_empty):
    cfg = make_cfg(detector, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(not keep_empty), *options.split())
    with monkeypatch.context() as patch:
        patch.setattr(dataset_mapper, "read_image", None)
        statistics = measure_anchors(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == -1  # the config is as it was
    assert statistics.image_counts.tolist() == compute_statistics("crowd").image_counts.tolist()
    assert statistics.anchors.settings == anchor_settings(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, images = 4, 6 if keep_empty else 5
    batches = itertools.islice(build_train_loader_from_config(cfg), -(-images // cfg.SOLVER.IMS_PER_BATCH))
    expected = slow_counts(cfg, build_model(cfg), batches)
    found = statistics.anchors
    assert (found.positives.tolist(), found.foreground, found.number) == expected
    assert found.positives.sum() > found.foreground > 5
    assert found.positives[0] >= found.positives[1:3].max() > 0  # cats and dogs are animals, too


def test_processes_share_the_work(make_cfg, monkeypatch):
    cfg = make_cfg("MultiLabelFCOS", "INPUT.MIN_SIZE_TRAIN", "64", "INPUT.CROP.ENABLED", "False")
    whole, parts = measure_anchors(cfg).anchors, []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda one: parts.append(one) or parts)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        found = measure_anchors(cfg).anchors
    assert len(parts) == 2 and parts[0].number == parts[1].number == whole.number / 2
    assert found.positives.tolist() == whole.positives.tolist() and found.foreground == whole.foreground


def test_one_class_and_no_objects(make_cfg, store_maker, tmp_path):
    store_maker(tmp_path / "one", classes=["only"], parents={}, images=2)
    cfg = make_cfg("MultiLabelFCOS", "DATASETS.STORES", f"one={tmp_path / 'one'}", "DATASETS.TRAIN", "one")
    anchors = measure_anchors(cfg).anchors
    assert anchors.positives.tolist() == [anchors.foreground] and 0 < anchors.foreground < anchors.number
    assert anchor_prior(anchors, "per_class").tolist() == [anchor_prior(anchors, "objectness")]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    assert count_anchors(build_model(cfg), [], 1).number == 0
    with pytest.raises(ConfigError, match="Linear has no anchors to count"):
        count_anchors(torch.nn.Linear(1, 1), [], 1)


def test_images_of_unknown_size_are_read(make_cfg, crowd):
    cfg = make_cfg("MultiLabelFCOS")
    mapper = _SizesAlone(**_SizesAlone.from_config(cfg, is_train=True))
    record = {"file_name": str(crowd.parent / "0.png"), "annotations": []}
    assert mapper.read_image(record).shape == (64, 64, 1) and record["width"] == 64


def test_the_command_writes_what_training_takes(yaml_args, tmp_path, capsys):
    path, options = tmp_path / "new" / "anchors.json", ["MODEL.META_ARCHITECTURE", "MultiLabelRetinaNet"]
    args = yaml_args(*options)
    words = ["anchor-statistics", "--config-file", args.config_file, "--quiet", "--output"]
    assert cli.main([*words, str(path), *args.opts]) == 0
    out, err = capsys.readouterr()
    anchors = read_statistics(path, IDS).anchors
    prior = anchor_prior(anchors, "shared")
    bias = torch.logit(torch.tensor(prior, dtype=torch.float64)).item()
    assert f"{anchors.number:,} anchors (N), {anchors.foreground:,} of them positive (N_f)" in out
    assert f"pi = sum_j n_j / (N K) = {prior:.4g}, bias b = -ln((1 - pi) / pi) = {bias:.4f}" in out
    assert out.endswith(f"DATASETS.STATISTICS {path}\n") and err == ""
    cfg = trainer.configure(yaml_args(*options, "DATASETS.STATISTICS", str(path)))
    assert measured_prior(cfg, "shared") == prior
    cfg = trainer.configure(yaml_args(*options, "DATASETS.STATISTICS", str(path), "INPUT.GROUP_OF", "drop"))
    with pytest.raises(
        ConfigError, match=r"anchors\.json were counted with INPUT\.GROUP_OF 'keep', but it is 'drop'"
    ):
        measured_prior(cfg, "shared")
    for output, message in ((tmp_path, "is a folder"), (path, "DATASETS.TRAIN")):
        assert cli.main([*words, str(output), "DATASETS.TRAIN", "()"]) == 2
        assert message in capsys.readouterr().err


def test_a_class_never_seen_is_named():
    anchors = AnchorStatistics([50, 20, 0], 60, 10_000, {})
    lines = anchor_lines(ClassStatistics("abc", 9, [9, 5, 1], [9, 5, 1], anchors=anchors), anchors)
    assert lines[1].startswith("objectness: N_f / N = 0.006, bias") and lines[1].endswith("= -5.1100")
    assert lines[3:] == [
        "  head        1 classes, n_j / N from 0.005 to 0.005",
        "  medium      1 classes, n_j / N from 0.002 to 0.002",
        "  1 without a positive anchor: c",
    ]
