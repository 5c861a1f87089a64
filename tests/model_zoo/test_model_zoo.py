import shutil
import sys
import types

import pytest
import torch

from longtail_det2 import config_names as implementation
from longtail_det2 import model_zoo
from longtail_det2.checkpoint.weights import Weights, sha256_of, write_weights
from longtail_det2.utils.errors import ConfigError

YAML, LAZY = (f"openimages/faster_rcnn_R_50_FPN_OpenImages.{suffix}" for suffix in ("yaml", "py"))


def test_list_has_configs_and_not_their_parts():
    names = model_zoo.list_configs()
    assert {YAML, LAZY, "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"} <= set(names)
    assert not any("common" in name or "Base-" in name for name in names)


def test_unknown_name_lists_the_known():
    with pytest.raises(ConfigError) as error:
        model_zoo.get_config_file("openimages/faster_rcnn_R_50_FPN_OpenImage.yaml")
    assert f"Did you mean '{YAML}'" in str(error.value) and LAZY in str(error.value)
    for outside in ("../README.md", "/etc/passwd"):
        with pytest.raises(ConfigError, match="not in the model zoo"):
            model_zoo.get_config_file(outside)


class TestCheckpoints:
    NAME = "shapes/faster_rcnn_tiny_sigmoid_shapes"

    @pytest.fixture
    def zoo(self, tmp_path, monkeypatch):
        """A zoo of one file, served as a folder and as the hub repository somebody/zoo."""

        def download(repository, allow_patterns):
            if repository != "somebody/zoo":
                raise OSError("404 Client Error\nand a long explanation")
            assert allow_patterns == f"{self.NAME}/*.safetensors"
            return str(tmp_path)

        module = types.ModuleType("huggingface_hub")
        module.snapshot_download = download
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.setenv("LONGTAIL_DET2_ZOO", str(tmp_path))
        weights = tmp_path / self.NAME / "model.safetensors"
        weights.parent.mkdir(parents=True)
        write_weights(weights, Weights({"weight": torch.ones(1)}))
        return weights.rename(weights.with_stem(f"model_{sha256_of(weights)[:8]}"))

    @pytest.mark.parametrize("suffix", ["", ".yaml", ".py"])
    @pytest.mark.parametrize("place", ["folder", "somebody/zoo"])
    def test_twins_share_their_weights(self, zoo, monkeypatch, suffix, place):
        if place != "folder":
            monkeypatch.setenv("LONGTAIL_DET2_ZOO", place)
        assert model_zoo.get_checkpoint(self.NAME + suffix) == str(zoo)

    @pytest.mark.parametrize("place", [None, "", "nobody/zoo", "somebody/zoo", "not/a/repository"])
    def test_no_weights(self, zoo, monkeypatch, place):
        zoo.unlink()
        if place is not None:
            monkeypatch.setenv("LONGTAIL_DET2_ZOO", place)
        with pytest.raises(ConfigError, match=r"no published weights|LONGTAIL_DET2_ZOO|404"):
            model_zoo.get_config(f"{self.NAME}.yaml", trained=True)

    def test_several_weights(self, zoo):
        zoo.with_stem("other").touch()
        with pytest.raises(ConfigError, match="2 weights files"):
            model_zoo.get_checkpoint(self.NAME)

    def test_hub_without_its_package(self, zoo, monkeypatch):
        monkeypatch.setenv("LONGTAIL_DET2_ZOO", "somebody/zoo")
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ConfigError, match="huggingface-hub"):
            model_zoo.get_checkpoint(self.NAME)


@pytest.mark.parametrize("suffix", ["yaml", "py"])
def test_get_model(suffix):
    with torch.device("meta"):
        model = model_zoo.get(f"openimages/faster_rcnn_R_50_FPN_OpenImages.{suffix}", device="meta")
    assert model.roi_heads.box_predictor.cls_score.out_features == 501  # with background
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
