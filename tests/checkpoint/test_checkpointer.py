import os

import pytest
import torch
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.utils.errors import ConfigError


class Detector(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(3, num_classes + 1)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a detector of the classes a, b."""
    torch.manual_seed(0)
    checkpointer = ClassAwareCheckpointer(Detector(2), str(tmp_path), class_ids=["a", "b"])
    checkpointer.save("model", note=3)
    return str(tmp_path / "model.pth"), checkpointer.model


def test_round_trip(saved, tmp_path):
    _, model = saved
    options = {"class_ids": ["a", "b"], "reset_weights": ["roi_heads"]}  # which is not for resuming
    other = ClassAwareCheckpointer(Detector(2), str(tmp_path), **options)
    assert other.has_checkpoint()
    extra = other.resume_or_load("", resume=True)
    assert extra["note"] == 3
    for one, two in zip(model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


@pytest.mark.parametrize(
    ("class_ids", "words"),
    [
        ("abc", ["for 2 classes, the model for 3", "MODEL.RESET_WEIGHTS roi_heads.box_predictor"]),
        ("a", ["for 2 classes, the model for 1:"]),
        ("ac", ["class 1 is 'b' there and 'c'"]),
    ],
)
def test_other_classes_are_named(saved, class_ids, words):
    path, _ = saved
    with pytest.raises(ConfigError) as error:
        ClassAwareCheckpointer(Detector(len(class_ids)), class_ids=class_ids).load(path)
    assert all(word in str(error.value) for word in [*words, path])


def test_checkpoint_that_does_not_know_its_classes(tmp_path):
    path = str(tmp_path / "plain.pth")
    torch.save(Detector(2).state_dict(), path)
    with pytest.raises(ConfigError, match=r"cls_score.weight: \(3, 3\) in the checkpoint, \(4, 3\)"):
        ClassAwareCheckpointer(Detector(3), class_ids=["a", "b", "c"]).load(path)
    ClassAwareCheckpointer(Detector(2), class_ids=["a", "b"]).load(path)
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS.*nothing\.pth"):
        ClassAwareCheckpointer(Detector(2)).load(str(tmp_path / "nothing.pth"))


def test_reset_weights_start_afresh(saved):
    path, model = saved
    checkpointer = ClassAwareCheckpointer(
        Detector(3), class_ids=["x", "y", "z"], reset_weights=["roi_heads.box_predictor"]
    )
    before = checkpointer.model.roi_heads.box_predictor.cls_score.weight.clone()
    checkpointer.load(path)
    assert torch.equal(checkpointer.model.backbone.weight, model.backbone.weight)
    assert torch.equal(checkpointer.model.roi_heads.box_predictor.cls_score.weight, before)
