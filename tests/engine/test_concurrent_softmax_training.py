"""Where co-occurrence rates come from in a run, and where they go: data, files, checkpoints."""

import dataclasses
import json

import pytest
import torch

from longtail_det2.cli.run import run
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.statistics import compute_statistics, cooccurrence_rates_of, write_statistics
from longtail_det2.engine import lazy, trainer

LOSS = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "ConcurrentSoftmaxLoss")
NODE = "MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX"
RATES = "roi_heads.box_predictor.classification_loss.rates"
CASCADE = "shapes/cascade_rcnn_tiny_softmax_shapes.yaml"
LAZY = """
from detectron2.config import LazyCall as L

from longtail_det2 import model_zoo
from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss
from longtail_det2.data.statistics import cooccurrence_rates_of

base = model_zoo.get_config("shapes/faster_rcnn_tiny_softmax_shapes.py")
dataloader, datasets, lr_multiplier, model = base.dataloader, base.datasets, base.lr_multiplier, base.model
optimizer, train = base.optimizer, base.train

model.roi_heads.box_predictor.classification_loss = L(ConcurrentSoftmaxLoss)(
    num_classes="${..num_classes}", rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}")
)
"""


@pytest.fixture
def counted(pictures, clean_catalogs):
    """The rates of the training pictures: cats and dogs are animals."""
    register_store("counted", pictures / "train")
    rates = cooccurrence_rates_of("counted")
    assert rates[1, 0] == rates[2, 0] == 1 and 0 < rates[0, 1] < 1
    return torch.from_numpy(rates.astype("float32"))


def saved(path):
    return torch.load(path)["model"]


def test_yaml_counts_the_rates_and_evaluation_takes_them_from_the_checkpoint(yaml_args, tmp_path, counted):
    assert run(trainer.main, yaml_args(*LOSS)) == 0
    weights = saved(tmp_path / "run/model_final.pth")
    assert torch.equal(weights[RATES], counted)
    options = ("MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again"))
    assert run(trainer.main, yaml_args(*LOSS, *options, flags=["--eval-only"])) == 0
    assert run(trainer.main, yaml_args(*LOSS, flags=["--resume"], max_iter=4)) == 0


def test_lazy_is_the_same(lazy_args, tmp_path, counted):
    (tmp_path / "config.py").write_text(LAZY)
    assert run(lazy.main, lazy_args(config=tmp_path / "config.py")) == 0
    assert torch.equal(saved(tmp_path / "run/model_final.pth")[RATES], counted)


def test_every_stage_of_a_cascade_has_the_rates(yaml_args, tmp_path, counted):
    assert run(trainer.main, yaml_args(*LOSS, config=CASCADE, max_iter=1)) == 0
    weights = saved(tmp_path / "run/model_final.pth")
    for stage in range(3):
        found = weights[f"roi_heads.box_predictor.{stage}.classification_loss.rates"]
        assert torch.equal(found, counted)


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_dense_detectors(yaml_args, tmp_path, counted, detector):
    options = ("MODEL.DENSE_HEAD.CLASSIFICATION_LOSS", "ConcurrentSoftmaxLoss")
    config = f"shapes/{detector}_tiny_focal_shapes.yaml"
    assert run(trainer.main, yaml_args(*options, config=config)) == 0
    found = saved(tmp_path / "run/model_final.pth")["head.classification_loss.rates"]
    assert torch.equal(found, counted)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert next(line["loss_cls"] for line in lines if "loss_cls" in line) > 0


def test_a_file_of_statistics_is_used(yaml_args, pictures, tmp_path, clean_catalogs):
    register_store("renamed", pictures / "renamed")
    found = dataclasses.replace(
        compute_statistics("renamed"), class_ids=("animal", "cat", "dog", "ball"), hierarchy=None
    )
    write_statistics(tmp_path / "flat.json", found)
    options = ("DATASETS.STATISTICS", str(tmp_path / "flat.json"))
    assert run(trainer.main, yaml_args(*LOSS, *options, max_iter=1)) == 0
    assert not saved(tmp_path / "run/model_final.pth")[RATES].any()


def test_weights_of_plain_softmax_are_evaluated_with_the_rates_of_the_data(yaml_args, tmp_path, counted):
    assert run(trainer.main, yaml_args(max_iter=1)) == 0
    options = ("MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again"))
    args = yaml_args(*LOSS, *options, f"{NODE}.DIRECTION", "given_column", flags=["--eval-only"])
    assert run(trainer.main, args) == 0
    assert (
        run(trainer.main, yaml_args(*LOSS, *options, f"{NODE}.DIRECTION", "rows", flags=["--eval-only"])) == 2
    )
