"""Backbones of timm: its own features, what is frozen, weights of a file. timm's test models are small."""

import logging
import re
import sys

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from model_factories import training_step
from safetensors.torch import save_file

from longtail_det2 import model_zoo
from longtail_det2.config import get_cfg
from longtail_det2.engine.build import build_model
from longtail_det2.modeling.backbone import TimmBackbone, timm_pixels
from longtail_det2.utils.errors import ConfigError

timm = pytest.importorskip("timm")
MODELS = ["test_efficientnet", "test_resnet", "test_convnext", "test_mambaout"]
LEVELS = ["stride8", "stride16", "stride32"]


def whole_model(name):
    """Random weights, and statistics of batch normalisation that are not 0 and 1."""
    torch.manual_seed(1)
    model = timm.create_model(name).eval()
    for key, buffer in model.named_buffers():
        if "running" in key:
            buffer.uniform_(0.5, 1.5)
    return model


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_levels_are_those_of_the_model_in_the_file(name, suffix, tmp_path):
    model = whole_model(name)
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    backbone = TimmBackbone(name, LEVELS, weights=str(path)).eval()
    outputs = backbone(images())
    expected = model.forward_intermediates(images(), indices=3, intermediates_only=True)
    assert list(outputs) == list(backbone.output_shape()) == LEVELS
    for (level, output), other in zip(outputs.items(), expected, strict=True):
        shape = backbone.output_shape()[level]
        assert output.shape == (2, shape.channels, 64 // shape.stride, 64 // shape.stride)
        torch.testing.assert_close(output, other)


def test_file_with_other_names_is_loaded_by_order(tmp_path):
    model = whole_model("test_resnet")
    renamed = {
        f"_{i}.{key.split('.')[-1]}": value for i, (key, value) in enumerate(model.state_dict().items())
    }
    keys = dict(zip(model.state_dict(), renamed, strict=True))
    torch.save({"state_dict": renamed}, tmp_path / "other.pth")
    backbone = TimmBackbone("test_resnet", LEVELS, weights=str(tmp_path / "other.pth"))
    for key, value in backbone.body.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(value, renamed[keys[key]])


def test_files_that_do_not_fit(tmp_path):
    path = str(tmp_path / "wrong.pth")
    torch.save(whole_model("test_efficientnet").state_dict(), path)
    with pytest.raises(ConfigError, match=r"test_resnet: \d+ of \d+ .* begins with conv_"):
        TimmBackbone("test_resnet", LEVELS, weights=path)
    wider = {
        key: value.repeat_interleave(2, 0)
        for key, value in whole_model("test_resnet").state_dict().items()
        if value.ndim
    }
    torch.save(wider, path)
    with pytest.raises(ConfigError, match=r"missing or of another shape, such as conv1\.0\.weight"):
        TimmBackbone("test_resnet", LEVELS, weights=path)
    with pytest.raises(ConfigError, match="there is no weights file"):
        TimmBackbone("test_resnet", LEVELS, weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_batch_normalisation(freeze_norm):
    backbone = TimmBackbone("test_resnet", LEVELS, freeze_stride=8, freeze_norm=freeze_norm)
    backbone.eval().train()
    before = state(backbone)
    optimizer = torch.optim.SGD([one for one in backbone.parameters() if one.requires_grad], 0.1)
    sum(output.square().mean() for output in backbone(images()).values()).backward()
    optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert "body.layer3.0.downsample.1.weight" in changed
    assert ("body.layer3.0.bn1.running_mean" in changed) is not freeze_norm
    assert ("body.layer3.0.downsample.2.weight" in changed) is not freeze_norm
    frozen = ("body.conv1", "body.bn1", "body.layer1", "body.layer2")
    assert not any(key.startswith(frozen) for key in changed)


def test_errors_say_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match=r"MODEL.TIMM.NAME 'resnet_none': Unknown model"):
        TimmBackbone("resnet_none", LEVELS)
    for name, levels in (("test_convnext", ["stride2"]), ("test_vit", ["stride16"]), ("test_resnet", [])):
        with pytest.raises(ConfigError, match=re.escape(f"timm's {name} has levels of strides [")):
            TimmBackbone(name, levels)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install timm$"):
        TimmBackbone("test_resnet", LEVELS)


def test_pixels_are_those_of_the_training():
    assert timm_pixels("resnet18") == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert timm_pixels("tf_efficientnet_lite0") == ([127.5] * 3, [127.5] * 3)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("own_data/faster_rcnn_effnet_lite0_FPN.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", "test_efficientnet", 4
    cfg.MODEL.TIMM.FREEZE_STRIDE = 8
    cfg.MODEL.TIMM.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save(whole_model("test_efficientnet").state_dict(), cfg.MODEL.TIMM.WEIGHTS)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = map(list, timm_pixels("test_efficientnet"))
    return cfg


def test_detector_of_a_config_trains(cfg, batch, caplog):
    """Weights of the whole detector need no file of the backbone."""
    with caplog.at_level(logging.WARNING):
        model = build_model(cfg)
    assert not caplog.records
    expected = whole_model("test_efficientnet").conv_stem.weight
    assert torch.equal(model.backbone.bottom_up.body.conv_stem.weight, expected)
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6"]
    sum(training_step(model, batch)[0].values()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("backbone.bottom_up.body.blocks.4") for name in trained)
    assert not any(name.startswith("backbone.bottom_up.body.conv_stem") for name in trained)
    cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.WEIGHTS = "none.pth", "model_final.pth"
    build_model(cfg)


@pytest.mark.parametrize(("key", "value"), [("PIXEL_MEAN", [103.53, 116.28, 123.675]), ("FORMAT", "BGR")])
def test_other_pixels_are_named(cfg, key, value, caplog):
    node = cfg.INPUT if key == "FORMAT" else cfg.MODEL
    node[key] = value
    with caplog.at_level(logging.WARNING):
        build_model(cfg)
    assert "was trained with INPUT.FORMAT RGB MODEL.PIXEL_MEAN [" in caplog.text


def test_weights_of_a_lazy_config(cfg):
    lazy = model_zoo.get_config("own_data/faster_rcnn_R_50_FPN.py").model.backbone
    lazy.in_features = levels = list(cfg.MODEL.FPN.IN_FEATURES)
    lazy.bottom_up = LazyCall(TimmBackbone)(
        name="test_efficientnet", levels=levels, freeze_stride=32, weights=cfg.MODEL.TIMM.WEIGHTS
    )
    ours, theirs = state(instantiate(lazy).bottom_up), state(build_model(cfg).backbone.bottom_up)
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
