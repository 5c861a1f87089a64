"""This project's heads and losses in a plain Detectron2 project: its trainer, loader and catalogs."""

import json

import numpy as np
import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from factories import write_images
from runs import metrics

import longtail_det2.modeling  # noqa: F401 - registers heads, losses, detectors and backbones
from longtail_det2.config import add_longtail_config
from longtail_det2.data.statistics import compute_statistics, write_statistics

LOSSES = [
    "SoftmaxCrossEntropyLoss",
    "SigmoidBCELoss",
    "SigmoidFocalLoss",
    "ConcurrentSoftmaxLoss",
    "SeesawLoss",
    "DistributionBalancedLoss",
    "AsymmetricLoss",
    "MultiFocalModifierLoss",
]


@pytest.fixture
def coco(tmp_path):
    """The data set "guest_train": six images of a COCO file with one object each."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 7)]
    place = {"bbox": [10, 10, 34, 30], "area": 1020, "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, "category_id": i % 3 + 1, **place} for i in range(1, 7)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_images(tmp_path, content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    register_coco_instances("guest_train", {}, str(tmp_path / "train.json"), str(tmp_path))


def guest_config(output, *options):
    """A config as a user of Detectron2 writes it; only what makes it small is added."""
    cfg = get_cfg()
    add_longtail_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("guest_train",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "cpu", str(output)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 2, 0
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    tiny = ["MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.TINY_BACKBONE.STAGE_CHANNELS", (4, 8, 8)]
    tiny += ["MODEL.RPN.IN_FEATURES", ["p3"], "MODEL.ROI_HEADS.IN_FEATURES", ["p3"]]
    tiny += ["MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]], "MODEL.ROI_BOX_HEAD.FC_DIM", 16]
    cfg.merge_from_list([*tiny, *options])
    return cfg


@pytest.mark.parametrize("loss", LOSSES)
def test_detectron2s_trainer_trains_with_each_loss(coco, tmp_path, loss):
    options = ["MODEL.ROI_HEADS.NAME", "MultiLabelROIHeads", "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", loss]
    if loss.startswith(("Concurrent", "Distribution", "MultiFocal")):  # they need statistics of the data
        write_statistics(tmp_path / "statistics.json", compute_statistics(["guest_train"]))
        options += ["DATASETS.STATISTICS", str(tmp_path / "statistics.json")]
    trainer = DefaultTrainer(guest_config(tmp_path / "run", *options))
    assert type(trainer.model.roi_heads.box_predictor.classification_loss).__name__ == loss
    trainer.train()
    last = metrics(tmp_path / "run")[-1]
    assert np.isfinite(last["total_loss"]) and "loss_cls" in last
    assert (tmp_path / "run/model_final.pth").is_file()


def test_detectron2s_own_heads_train_and_its_defaults_and_catalogs_stay(coco, tmp_path):
    trainer = DefaultTrainer(guest_config(tmp_path / "run"))
    assert type(trainer.model.roi_heads).__name__ == "StandardROIHeads"
    trainer.train()
    assert get_cfg().MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert get_cfg().DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert not any(name.startswith(("shapes", "openimages")) for name in DatasetCatalog.list())
