"""NaN in training: a named error, the batch noted, a full disk named too."""

import math
import re
from pathlib import Path

import pytest
import torch

from longtail_det2.cli.run import run
from longtail_det2.engine import trainer
from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss


@pytest.fixture
def poison(monkeypatch):
    """Makes the classification loss NaN in its third call."""
    original, calls = SoftmaxCrossEntropyLoss.unreduced, []

    def unreduced(self, logits, targets):
        calls.append(0)
        losses = original(self, logits, targets)
        return {name: value * math.nan if len(calls) == 3 else value for name, value in losses.items()}

    monkeypatch.setattr(SoftmaxCrossEntropyLoss, "unreduced", unreduced)
    return calls


def test_nan_stops_with_iteration_loss_and_images(front, tmp_path, capsys, poison):
    yaml, lazy = (
        ("SOLVER.CHECKPOINT_PERIOD", "1", "SEED", "1"),
        ("train.checkpointer.period=1", "train.seed=1"),
    )
    assert run(front.main, front.args(yaml, lazy, max_iter=3)) == 2
    message = capsys.readouterr().err
    message = message[message.index("error: ") :]
    assert message.startswith(
        "error: training stopped in iteration 2: loss_cls = nan in the batch of the images"
    )
    assert re.search(r"of the images [^ ,]+, [^ ,]+ \(process 0\)", message) and "loss_rpn" not in message
    newest = torch.load(tmp_path / "run/model_0000001.pth")["model"]  # nothing of the bad step is kept
    assert all(torch.isfinite(value).all() for value in newest.values())
    assert not (tmp_path / "run/model_final.pth").exists()
    assert not (tmp_path / "run/inference").exists()  # not evaluated although it was the last iteration


def test_diverged_weights_are_told_the_same_way(yaml_args, tmp_path, capsys):
    """Detectron2 finds NaN in predictions before there is a loss."""
    options = ("SOLVER.BASE_LR", "1e30", "SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", "False")
    assert run(trainer.main, yaml_args(*options, max_iter=5)) == 2
    message = capsys.readouterr().err
    assert "training stopped in iteration" in message and "Traceback" not in message
    assert re.search(r"of the images [^ ,]+, [^ ,]+ \(process 0\)", message)


def test_full_disk_at_a_checkpoint(yaml_args, tmp_path, capsys, monkeypatch):
    """The error names the file and what to do, the older checkpoint stays and training resumes from it."""
    original, options = torch.save, ("SOLVER.CHECKPOINT_PERIOD", "1")

    def save(data, file, *args, **kwargs):
        if "model_0000001" in str(getattr(file, "name", "")):
            file.write(b"half")
            raise OSError(28, "No space left on device")
        return original(data, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    assert run(trainer.main, yaml_args(*options, max_iter=2)) == 2
    message = capsys.readouterr().err
    assert f"error: {tmp_path}/run/model_0000001.pth cannot be written: No space left on device" in message
    assert "--resume" in message and "Traceback" not in message[message.index("error: ") :]
    monkeypatch.undo()
    folder = Path(tmp_path / "run")
    assert sorted(path.name for path in folder.glob("model*")) == ["model_0000000.pth"]
    assert run(trainer.main, yaml_args(*options, flags=["--resume"], max_iter=2)) == 0
    assert (folder / "model_final.pth").is_file()


def test_full_disk_at_the_metrics(yaml_args, capsys, monkeypatch):
    from detectron2.utils.events import JSONWriter

    def write(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JSONWriter, "write", write)
    assert run(trainer.main, yaml_args(max_iter=2)) == 2
    assert "metrics cannot be written: No space left on device" in capsys.readouterr().err
