import pytest
import torch
from torch import nn

from longtail_det2.engine import lazy, run, trainer
from longtail_det2.engine.activation_checkpoint import checkpoint_activations
from longtail_det2.utils.errors import ConfigError


def step_state(folder):
    data = torch.load(folder / "model_final.pth", weights_only=True)
    return data["model"], data["trainer"]["hooks"]["MetricsLog"]["values"]["total_loss"]


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_training_is_the_same_with_and_without(yaml_args, lazy_args, tmp_path, monkeypatch, form):
    """Losses, weights and batch normalisation's statistics, over several steps."""
    if form == "yaml":
        trainer.main(yaml_args("DATASETS.TEST", "()"))
    else:
        lazy.main(lazy_args("dataloader.test.dataset.names=[]"))
    weights, losses = step_state(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "plain")
    used = []

    def spy(model, prefixes):
        used.append(checkpoint_activations(model, prefixes))

    monkeypatch.setattr(run, "checkpoint_activations", spy)
    if form == "yaml":
        trainer.main(
            yaml_args("MODEL.ACTIVATION_CHECKPOINT", "backbone,roi_heads.box_head", "DATASETS.TEST", "()")
        )
    else:
        keys = "train.activation_checkpoint=[backbone,roi_heads.box_head]"
        lazy.main(lazy_args(keys, "dataloader.test.dataset.names=[]"))
    twin, twin_losses = step_state(tmp_path / "run")
    assert twin_losses == losses and weights.keys() == twin.keys()
    assert all(torch.equal(twin[name], weights[name]) for name in weights)
    assert used == [["backbone", "roi_heads.box_head"]]


def model():
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "b": nn.Linear(2, 2)})


def test_prefixes_choose_the_outermost_modules():
    assert checkpoint_activations(model(), ["a"]) == ["a"]
    assert checkpoint_activations(model(), ["a."]) == ["a.0", "a.1"]
    assert checkpoint_activations(model(), ["a.0", "a", "b"]) == ["a.0", "a", "b"]
    assert checkpoint_activations(model(), []) == []
    with pytest.raises(ConfigError, match=r"begins with 'head'; those of the model begin with a, b"):
        checkpoint_activations(model(), ["head"])


def test_activations_are_not_kept():
    computed = []
    part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    part[0].register_forward_hook(lambda *_: computed.append(1))
    whole = nn.Sequential(part)
    checkpoint_activations(whole, ["0"])
    whole(torch.ones(1, 2)).sum().backward()
    assert len(computed) == 2
    whole.eval()
    whole(torch.ones(1, 2))
    assert len(computed) == 3
