"""Messages say "1 class", not "1 classes"."""

import pytest
import torch
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.config import get_cfg
from longtail_det2.config_files import merge_options
from longtail_det2.engine.launch import launch
from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.wording import pluralize


def test_counted():
    assert [pluralize(n, "picture") for n in (0, 1, 2000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert [pluralize(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_options():
    with pytest.raises(ConfigError, match=r"got 1 word: SOLVER\.MAX_ITER"):
        merge_options(get_cfg(), ["SOLVER.MAX_ITER"])
    with pytest.raises(ConfigError, match="got 3 words: "):
        merge_options(get_cfg(), ["SOLVER.MAX_ITER", "3", "SEED"])


def test_checkpoint_of_one_class(tmp_path):
    one, two = (ClassAwareCheckpointer(nn.Linear(2, n), str(tmp_path), class_ids="ab"[:n]) for n in (1, 2))
    one.save("model")
    with pytest.raises(ConfigError, match="it is for 1 class, the model for 2:"):
        two.load(str(tmp_path / "model.pth"))


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"--num-gpus 2: this machine has 1 CUDA device$"):
        launch(print, processes_per_machine=2)
