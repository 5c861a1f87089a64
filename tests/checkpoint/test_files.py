"""Damaged, hostile and unwritable checkpoint files."""

import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from longtail_det2.checkpoint import CheckpointError, ClassAwareCheckpointer


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def make(folder, value=0.0):
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, value)
    return ClassAwareCheckpointer(model, str(folder))


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of iterations 2 and 5, whose weights are 2 and 5."""
    for iteration in (2, 5):
        make(tmp_path, iteration).save(f"model_{iteration:07d}", iteration=iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (iteration, iteration))
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_bits(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2  # within the weights
    data[middle] ^= 0xFF
    path.write_bytes(bytes(data))


def replace_by_text(path):
    path.write_text("<html>Not found</html>")


def replace_by_list(path):
    torch.save([1, 2], path)


def replace_by_code(path):
    torch.save({"model": Payload(path.parent / "executed")}, path)


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_bits, replace_by_text, replace_by_list, replace_by_code]
)
def test_resume_takes_the_checkpoint_before_a_damaged_one(run, caplog, damage):
    damage(run / "model_0000005.pth")
    checkpointer = make(run)
    extra = checkpointer.resume_or_load("", resume=True)
    assert extra["iteration"] == 2 and float(checkpointer.model.weight[0, 0].detach()) == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("model_0000005.pth" in text and "trying the one before" in text for text in warnings)
    assert not (run / "executed").exists()


def test_no_readable_checkpoint_is_an_error_not_a_new_start(run):
    for path in run.glob("*.pth"):
        truncate(path)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints of .* can be read \(2 tried"):
        make(run).resume_or_load("", resume=True)


@pytest.mark.parametrize("content", [None, "", "model_0000009.pth", "../elsewhere.pth"])
def test_lost_or_wrong_last_checkpoint_file(run, content):
    (run / "last_checkpoint").unlink()
    if content is not None:
        (run / "last_checkpoint").write_text(content)
    (run / "pretrained.pth").write_bytes(b"not of this run")
    assert make(run).resume_or_load("", resume=True)["iteration"] == 5


def test_last_checkpoint_decides(run):
    (run / "last_checkpoint").write_text("model_0000002.pth")
    assert make(run).resume_or_load("", resume=True)["iteration"] == 2


def test_unfinished_files_of_killed_processes_are_removed(run):
    (run / "model_0000008.pth.partial-123").write_bytes(b"half")
    assert make(run).resume_or_load("", resume=True)["iteration"] == 5
    assert not list(run.glob("*.partial-*"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights.pyth", "legacy.pth"])
def test_code_in_a_strangers_file_never_runs(tmp_path, name):
    executed = tmp_path / "executed"
    path = tmp_path / name
    content = {"model": {"weight": torch.zeros(1)}, "extra": Payload(executed)}
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"model": {}, "extra": Payload(executed)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "legacy.pth")
    with pytest.raises(CheckpointError, match=r"holds more than weights \(.*system\), which could run code"):
        make(tmp_path).load(str(path))
    assert not executed.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_pickles_of_arrays_load(tmp_path, protocol):
    weights = {"weight": np.full((64, 64), 3.0, np.float32), "bias": np.zeros(64, np.float32)}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}, protocol=protocol))
    checkpointer = make(tmp_path)
    checkpointer.load(str(path))
    assert float(checkpointer.model.weight[0, 0].detach()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"weight": 3}}, "'weight' is no tensor but int"),
        ({"model": {}}, "no weights"),
        ([1], "list"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        make(tmp_path).load(str(tmp_path / "odd.pth"))


def test_truncated_weights_are_named(run):
    truncate(run / "model_0000005.pth")
    with pytest.raises(CheckpointError, match=r"model_0000005.pth is no complete checkpoint"):
        make(run).load(str(run / "model_0000005.pth"))


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_files import make
from longtail_det2.utils.errors import ConfigError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    make(sys.argv[1], 8).save("model_0000008", iteration=8)
except ConfigError as error:
    sys.exit(f"error: {error}")
"""


def test_no_room_for_a_checkpoint(run):
    """A real failure of write(2), in a process of its own."""
    command = [sys.executable, "-c", FULL_DISK, str(run), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"error: {run}/model_0000008.pth cannot be written: File too large")
    assert "Older checkpoints are intact" in message and "--resume" in message
    assert sorted(path.name for path in run.iterdir()) == [
        "last_checkpoint",
        "model_0000002.pth",
        "model_0000005.pth",
    ]
    assert make(run).resume_or_load("", resume=True)["iteration"] == 5


def test_no_permission_for_the_folder(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match=r"model_0000008.pth cannot be written: Permission denied"):
        make(run).save("model_0000008")
    monkeypatch.undo()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000
