import sys

import pytest
import torch

from longtail_det2.checkpoint.weights import Weights, read_weights, write_weights
from longtail_det2.utils.errors import ConfigError


@pytest.fixture
def weights():
    shared = torch.arange(6.0)
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {
        "b": shared,
        "a": shared,
        "conv": channels_last,
        "count": torch.tensor(3),
        "half": shared.half(),
    }
    return Weights(tensors, ("/m/é", "/m/2"), 1500, {"config": "shapes/x"})


def test_round_trip(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    write_weights(path, weights)
    found = read_weights(path)
    assert (found.class_ids, found.iteration) == (weights.class_ids, 1500)
    assert found.about.get("config") == "shapes/x"
    assert set(found.tensors) == set(weights.tensors)
    for name, value in weights.tensors.items():
        assert found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value)
    assert found.as_checkpoint()["class_ids"] == ["/m/é", "/m/2"]


def test_training_checkpoints_give_weights_alone(tmp_path):
    data = {"model": {"w": torch.ones(2)}, "class_ids": ["a"], "trainer": {"iteration": 9, "hooks": {}}}
    torch.save(data, tmp_path / "model.pth")
    found = read_weights(tmp_path / "model.pth")
    assert list(found.tensors) == ["w"] and found.iteration == 10 and found.class_ids == ("a",)
    torch.save(data["model"], tmp_path / "bare.pth")
    assert read_weights(tmp_path / "bare.pth").class_ids == ()


def test_other_errors(tmp_path, weights, monkeypatch):
    with pytest.raises(ConfigError, match="no weights file"):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError, match=r"end in "):
        read_weights(tmp_path / "model.bin")
    write_weights(tmp_path / "model.safetensors", weights)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="pip install safetensors"):
        read_weights(tmp_path / "model.safetensors")
