"""Damaged, hostile and unwritable checkpoint files."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from longtail_det2.checkpoint import CheckpointError, ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import Weights, read_weights, write_weights
from longtail_det2.utils.errors import ConfigError


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


DAMAGES = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>Not found</html>"),
    "list": lambda path: torch.save([1, 2], path),
    "code": lambda path: torch.save({"model": Payload(path.parent / "executed")}, path),
}
LOADERS = (lambda path: make(path.parent).load(str(path)), read_weights)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
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
    (run / ".model_0000008.pth.partial-0a1b2c3d").write_bytes(b"half")
    assert make(run).resume_or_load("", resume=True)["iteration"] == 5
    assert not list(run.glob(".*.partial-*"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "legacy.pth"])
def test_code_in_a_strangers_file_never_runs(tmp_path, name):
    executed = tmp_path / "executed"
    path = tmp_path / name
    content = {"model": {"weight": torch.zeros(1)}, "extra": Payload(executed)}
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"model": {}, "extra": Payload(executed)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "legacy.pth")
    for load in LOADERS:
        with pytest.raises(CheckpointError, match=r"more than weights .*system"):
            load(path)
    assert not executed.exists()


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


def test_a_small_archive_that_claims_to_be_large(tmp_path):
    """A record of zeros compressed 1,000 times: PyTorch would inflate it into memory."""
    torch.save({"model": {"weight": torch.zeros(1_000_000)}}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb,
    ):
        for one in whole.infolist():
            bomb.writestr(one.filename, whole.read(one), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"bomb.pth is no complete checkpoint .*claim 4,"):
        make(tmp_path).load(str(tmp_path / "bomb.pth"))


HOSTILE = {
    "text of 2^63 bytes": b"\x80\x04\x8d" + (2**63).to_bytes(8, "little") + b"a.",
    "text of 2^62 bytes": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.",
    "bytes of 8 TiB": b"\x80\x05\x96" + (2**43).to_bytes(8, "little") + b"a.",
    "array of 8 TiB": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I8796093022208\ntS'b'\ntR.",
    "array filled with less": b"cnumpy._core.numeric\n_frombuffer\n(S'abcd'\nS'f4'\n(I8796093022208\n"
    b"tS'C'\ntR.",
    "deep tuples": pickle.dumps({"weight": 0})[:-1] + b"0" + b")" + b"\x85" * 200_000 + b".",
    "deep lists among weights": b"}X\x01\x00\x00\x00a" + b")" + b"\x85" * 200_000 + b"s.",
    "nothing": b"",
    "a number": pickle.dumps(3),
    "text among weights": pickle.dumps({"model": {"weight": "text"}}),
    "bare text": pickle.dumps({"weight": "text"}),
    "objects": pickle.dumps({"weight": np.array(["a", None], dtype=object)}),
    "numbers as names": pickle.dumps({1: np.zeros(3)}),
    "a list by torch": [1, 2],
    "text by torch": "text",
    "text among weights by torch": {"model": {"w": "text"}},
    "no weights by torch": {"model": {}},
    "a list of weights by torch": {"model": [1]},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, content):
    path = tmp_path / ("hostile.pkl" if isinstance(content, bytes) else "hostile.pth")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    for load in LOADERS:
        with pytest.raises(ConfigError, match=path.name):
            load(path)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_files(tmp_path, keep):
    write_weights(tmp_path / "model.safetensors", Weights({"w": torch.arange(600.0)}, (), 0, {}))
    torch.save({"model": {"w": torch.arange(600.0)}}, tmp_path / "model.pth")
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pth"):
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
        for load in LOADERS:
            with pytest.raises(ConfigError, match=path.name):
                load(path)


def test_forms_of_other_projects(tmp_path):
    """{"state_dict": ...} is unwrapped; a torch file may be called .pkl; a pickle may lack its author."""
    weights = {"weight": torch.full((64, 64), 3.0), "bias": torch.zeros(64)}
    torch.save({"meta": {"epoch": 3}, "state_dict": weights}, tmp_path / "wrapped.pth")
    torch.save({"model": weights}, tmp_path / "torch.pkl")
    arrays = {name: value.numpy() for name, value in weights.items()}
    (tmp_path / "anonymous.pkl").write_bytes(pickle.dumps({"model": arrays}))
    zoo = [f"zoo{protocol}.pkl" for protocol in range(2, 6)]
    for protocol, name in enumerate(zoo, start=2):
        content = pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol=protocol)
        (tmp_path / name).write_bytes(content)
    for name in ("wrapped.pth", "torch.pkl", "anonymous.pkl", *zoo):
        checkpointer = make(tmp_path)
        checkpointer.load(str(tmp_path / name))
        assert float(checkpointer.model.weight[0, 0].detach()) == 3
        assert torch.equal(read_weights(tmp_path / name).tensors["weight"], weights["weight"])


def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("<urlopen error [Errno -2] Name or service not known>\nmore")

    checkpointer = make(tmp_path)
    monkeypatch.setattr(type(checkpointer.path_manager), "get_local_path", refuse)
    with pytest.raises(ConfigError, match=r"detectron2://a.pkl cannot be fetched \(<urlopen[^\n]*$"):
        checkpointer.load("detectron2://a.pkl")
