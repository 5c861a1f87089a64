import shutil

import pytest
import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig

from longtail_det2 import config_names as implementation
from longtail_det2 import model_zoo
from longtail_det2.utils.errors import ConfigError

YAML, LAZY = (f"openimages/faster_rcnn_R_50_FPN_OpenImages.{suffix}" for suffix in ("yaml", "py"))


def test_list_has_configs_and_not_their_parts():
    names = model_zoo.list_configs()
    assert {YAML, LAZY, "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"} <= set(names)
    assert not any("common" in name or "Base-" in name for name in names)


def test_get_config():
    cfg = model_zoo.get_config(YAML)
    assert isinstance(cfg, CfgNode) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 500
    assert isinstance(model_zoo.get_config(LAZY), DictConfig)


def test_unknown_name_lists_the_known():
    with pytest.raises(ConfigError) as error:
        model_zoo.get_config_file("openimages/faster_rcnn_R_50_FPN_OpenImage.yaml")
    assert f"Did you mean '{YAML}'" in str(error.value) and LAZY in str(error.value)
    for outside in ("../README.md", "/etc/passwd"):
        with pytest.raises(ConfigError, match="not in the model zoo"):
            model_zoo.get_config_file(outside)


def test_trained_weights_do_not_exist_yet():
    with pytest.raises(ConfigError, match="no published weights"):
        model_zoo.get_config(YAML, trained=True)


@pytest.mark.parametrize("suffix", ["yaml", "py"])
def test_get_model(suffix):
    with torch.device("meta"):
        model = model_zoo.get(f"openimages/faster_rcnn_R_50_FPN_OpenImages_sigmoid.{suffix}", device="meta")
    assert model.roi_heads.box_predictor.cls_score.out_features == 500
    assert model.training


@pytest.mark.parametrize("suffix", ["yaml", "py"])
def test_get_model_without_a_number_of_classes(suffix):
    with pytest.raises(ConfigError, match="the number of classes is left to the data set"):
        model_zoo.get(f"shapes/faster_rcnn_tiny_sigmoid_shapes.{suffix}")


def test_configs_of_an_installation(tmp_path, monkeypatch, repository):
    installed = tmp_path / "site-packages/longtail_det2/model_zoo/configs"
    shutil.copytree(repository / "configs", installed)
    monkeypatch.setattr(implementation, "_CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setattr(implementation, "_PACKAGED", installed)
    assert model_zoo.get_config_file(YAML) == str(installed / YAML)
    for name in (YAML, LAZY):
        assert model_zoo.get_config(name)


def test_installation_without_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "_CHECKOUT", tmp_path / "a")
    monkeypatch.setattr(implementation, "_PACKAGED", tmp_path / "b")
    with pytest.raises(ConfigError, match="the installation is incomplete"):
        model_zoo.list_configs()
