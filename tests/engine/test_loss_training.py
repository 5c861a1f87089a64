"""Losses with statistics in whole runs: what is counted reaches every head, checkpoints and evaluations."""

import dataclasses

import pytest
import torch
from runs import logged, weights

from longtail_det2.cli.run import run
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.statistics import (
    compute_statistics,
    cooccurrence_rates_of,
    image_counts_of,
    write_statistics,
)
from longtail_det2.engine import lazy, trainer

HEADS = {
    "faster_rcnn_tiny_softmax": ["roi_heads.box_predictor"],
    "cascade_rcnn_tiny_softmax": [f"roi_heads.box_predictor.{stage}" for stage in range(3)],
    "retinanet_tiny_focal": ["head"],
    "fcos_tiny_focal": ["head"],
}
RATES, COUNTS = "classification_loss.rates", "classification_loss.class_counts"
IMAGES = "classification_loss.image_counts"
CONCURRENT = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "ConcurrentSoftmaxLoss")
BALANCED = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "DistributionBalancedLoss")
SEESAW = (
    *("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "SeesawLoss"),
    *("MODEL.ROI_BOX_HEAD.CLASSIFIER", "NormalizedLinear"),
    *("MODEL.ROI_MASK_HEAD.PREDICTOR", "NormalizedConv2d"),
)
LAZY = """
from detectron2.config import LazyCall as L

from longtail_det2 import model_zoo
from longtail_det2.data.statistics import cooccurrence_rates_of, image_counts_of, num_images_of
from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss, DistributionBalancedLoss, SeesawLoss
from longtail_det2.modeling.roi_heads import build_classifier, build_mask_predictor

base = model_zoo.get_config("shapes/mask_rcnn_tiny_softmax_shapes.py")
dataloader, datasets, lr_multiplier, model = base.dataloader, base.datasets, base.lr_multiplier, base.model
optimizer, train = base.optimizer, base.train
heads = model.roi_heads
"""
LAZY_CONCURRENT = """
heads.box_predictor.classification_loss = L(ConcurrentSoftmaxLoss)(
    num_classes="${..num_classes}", rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}")
)
"""
LAZY_BALANCED = """
names = "${dataloader.train.dataset.names}"
heads.box_predictor.classification_loss = L(DistributionBalancedLoss)(
    num_classes="${..num_classes}",
    image_counts=L(image_counts_of)(names=names),
    num_images=L(num_images_of)(names=names),
)
"""
LAZY_SEESAW = """
heads.box_predictor.classification_loss = L(SeesawLoss)(num_classes="${..num_classes}")
heads.box_predictor.classifier = L(build_classifier)(name="NormalizedLinear")
heads.mask_head.predictor = L(build_mask_predictor)(name="NormalizedConv2d")
"""


@pytest.fixture
def counted(pictures, clean_catalogs):
    """The rates of the training pictures: cats and dogs are animals."""
    register_store("counted", pictures / "train")
    rates = cooccurrence_rates_of("counted")
    assert rates[1, 0] == rates[2, 0] == 1 and 0 < rates[0, 1] < 1
    return torch.from_numpy(rates.astype("float32"))


@pytest.mark.parametrize(
    ("options", "text"),
    [(CONCURRENT, LAZY_CONCURRENT), (SEESAW, LAZY_SEESAW), (BALANCED, LAZY_BALANCED)],
)
def test_yaml_and_lazy_are_the_same(yaml_args, lazy_args, tmp_path, options, text):
    config = "shapes/mask_rcnn_tiny_softmax_shapes.yaml"
    assert run(trainer.main, yaml_args(*options, "SEED", "3", config=config)) == 0
    state = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "yaml")
    (tmp_path / "config.py").write_text(LAZY + text)
    assert run(lazy.main, lazy_args("train.seed=3", config=tmp_path / "config.py")) == 0
    torch.testing.assert_close(weights(tmp_path / "run"), state, rtol=0, atol=0)


@pytest.mark.parametrize("loss", ["ConcurrentSoftmaxLoss", "FocalSeesawLoss", "DistributionBalancedLoss"])
@pytest.mark.parametrize("config", HEADS)
def test_statistics_of_every_head(yaml_args, tmp_path, counted, config, loss):
    node, heads = "ROI_BOX_HEAD" if "rcnn" in config else "DENSE_HEAD", HEADS[config]
    options = (f"MODEL.{node}.CLASSIFICATION_LOSS", loss)
    assert run(trainer.main, yaml_args(*options, config=f"shapes/{config}_shapes.yaml")) == 0
    state = weights(tmp_path / "run")
    if loss == "ConcurrentSoftmaxLoss":
        assert all(torch.equal(state[f"{head}.{RATES}"], counted) for head in heads)
        return
    if loss == "DistributionBalancedLoss":
        images = image_counts_of("counted").tolist()
        assert all(state[f"{head}.{IMAGES}"].tolist() == images for head in heads)
        return
    counts = [state[f"{head}.{COUNTS}"] for head in heads]
    for one in counts:  # dense heads count no background
        assert one.dtype == torch.int64 and one[:4].sum() > 0 and (one[-1] > 0) == ("rcnn" in config)
    assert len(heads) == 1 or not torch.equal(counts[0], counts[2])  # stages ask for other overlaps
    name = "loss_objectness" if len(heads) == 1 else "loss_objectness_stage2"
    assert 0 < next(iter(logged(tmp_path / "run", name).values())) < 10


def test_evaluation_takes_the_rates_from_the_checkpoint_or_else_from_the_data(yaml_args, tmp_path, counted):
    folder = tmp_path / "run"
    options = ("MODEL.WEIGHTS", str(folder / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again"))
    for loss in (CONCURRENT, ()):
        assert run(trainer.main, yaml_args(*loss, max_iter=1)) == 0
        for direction, code in (("given_column", 0), ("rows", 2)):
            key = ("MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX.DIRECTION", direction)
            args = yaml_args(*CONCURRENT, *options, *key, flags=["--eval-only"])
            assert run(trainer.main, args) == code


def test_a_file_of_statistics_is_used(yaml_args, pictures, tmp_path, clean_catalogs):
    register_store("renamed", pictures / "renamed")
    found = dataclasses.replace(
        compute_statistics("renamed"), class_ids=("animal", "cat", "dog", "ball"), hierarchy=None
    )
    write_statistics(tmp_path / "flat.json", found)
    options = ("DATASETS.STATISTICS", str(tmp_path / "flat.json"))
    assert run(trainer.main, yaml_args(*CONCURRENT, *options, max_iter=1)) == 0
    assert not weights(tmp_path / "run")[f"roi_heads.box_predictor.{RATES}"].any()
