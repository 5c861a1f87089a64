"""Class statistics of a run: computed before the model is built, or read from a file."""

import numpy as np
import pytest

from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.statistics import (
    compute_statistics,
    cooccurrence_rates_of,
    image_counts_of,
    read_statistics,
    write_statistics,
)
from longtail_det2.engine import trainer
from longtail_det2.utils.errors import DataError

IDS = ("animal", "cat", "dog", "ball")


def test_training_data_are_counted_into_the_folder_of_the_run(yaml_args, tmp_path):
    cfg = trainer.configure(yaml_args())
    path = tmp_path / "run/statistics.json"
    assert str(path) == cfg.DATASETS.STATISTICS and cfg.is_frozen()
    statistics = read_statistics(path, IDS)
    assert statistics.num_images == 8 and statistics.image_counts.tolist() == [6, 2, 2, 1]
    evaluator = trainer.Trainer.build_evaluator(cfg, "mini_test")
    assert evaluator is not None


@pytest.mark.parametrize("flags", [[], ["--eval-only"]])
def test_a_file_of_other_classes_is_refused(yaml_args, pictures, tmp_path, flags, clean_catalogs):
    register_store("renamed", pictures / "renamed")
    write_statistics(tmp_path / "other.json", compute_statistics("renamed"))
    with pytest.raises(DataError, match=r"other\.json.*'dog'"):
        trainer.configure(yaml_args("DATASETS.STATISTICS", str(tmp_path / "other.json"), flags=flags))


def test_evaluation_alone_needs_no_training_data(yaml_args, tmp_path):
    options = ("DATASETS.TRAIN", "('nowhere',)")
    cfg = trainer.configure(yaml_args(*options, flags=["--eval-only"]))
    assert cfg.DATASETS.STATISTICS == "" and not (tmp_path / "run/statistics.json").exists()
    with pytest.raises(DataError, match="nowhere"):
        trainer.configure(yaml_args(*options))
    trainer.configure(yaml_args())
    cfg = trainer.configure(yaml_args(*options, flags=["--eval-only"]))
    assert str(tmp_path / "run/statistics.json") == cfg.DATASETS.STATISTICS


def test_anchors_of_a_measured_prior_are_counted_once(yaml_args, tmp_path, monkeypatch):
    config = "projects/SamplingFree/configs/shapes/retinanet_tiny_sampling_free_shapes.yaml"
    cfg = trainer.configure(yaml_args("MODEL.DENSE_HEAD.PRIOR", "per_class", config=config))
    anchors = read_statistics(tmp_path / "run/statistics.json", IDS).anchors
    bias = trainer.Trainer.build_model(cfg).head.cls_score.bias[: len(IDS)].detach()
    expected = np.log(anchors.positives / (anchors.number - anchors.positives))
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-5)
    monkeypatch.setattr("longtail_det2.engine.setup.measure_anchors", lambda *_, **__: pytest.fail("again"))
    for flag in ("--resume", "--eval-only"):
        cfg = trainer.configure(yaml_args(config=config, flags=[flag]))
        assert read_statistics(cfg.DATASETS.STATISTICS).anchors is not None
        trainer.Trainer.build_model(cfg)
    with pytest.raises(pytest.fail.Exception, match="again"):
        trainer.configure(
            yaml_args("MODEL.RETINANET.IOU_THRESHOLDS", "[0.3,0.6]", config=config, flags=["--resume"])
        )


def test_functions_of_lazy_configs(pictures, clean_catalogs):
    register_store("some", pictures / "train")
    assert image_counts_of(["some"]).tolist() == [6, 2, 2, 1]
    assert image_counts_of("nowhere") is None and cooccurrence_rates_of("nowhere") is None
    np.testing.assert_array_equal(cooccurrence_rates_of("some")[:, 0], [0, 1, 1, 0])
