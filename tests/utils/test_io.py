"""Files and folders appear whole; a folder of a run that lives is left alone; JSON fails in one line."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from longtail_det2.utils.errors import DataError
from longtail_det2.utils.io import PartialFolder, atomic_writer, read_json


@pytest.fixture
def full(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("old")
    return tmp_path / "data"


def names(folder):
    return sorted(os.listdir(folder))


def test_a_complete_folder_takes_the_place_of_another(full):
    with PartialFolder(full) as partial:
        assert partial.folder.parent == full.parent and partial.folder.name.startswith(".data.partial-")
        (partial.folder / "file").write_text("new")
        partial.publish()
    assert (full / "file").read_text() == "new" and names(full.parent) == ["data"]


def test_an_incomplete_folder_goes_and_what_was_there_stays(full):
    with pytest.raises(KeyError), PartialFolder(full) as partial:
        (partial.folder / "file").write_text("new")
        raise KeyError
    assert (full / "file").read_text() == "old" and names(full.parent) == ["data"]


def test_what_is_there_stays_if_nothing_takes_its_place(full):
    with PartialFolder(full) as partial:
        partial.folder.rmdir()
        with pytest.raises(OSError):
            partial.publish()
    assert (full / "file").read_text() == "old" and names(full.parent) == ["data"]


@pytest.fixture
def other_run(full):
    """Another process that is making the same folder."""
    script = textwrap.dedent("""
        import sys, time
        from longtail_det2.utils.io import PartialFolder
        partial = PartialFolder(sys.argv[1])
        print(partial.folder, flush=True)
        time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(full)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_live_run_keeps_its_folder_and_a_killed_one_does_not(full, other_run):
    folder = full.parent / other_run.stdout.readline().strip()
    os.utime(folder, (0, 0))
    with PartialFolder(full):
        assert folder.is_dir()
    assert folder.is_dir() and len(names(full.parent)) == 3
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    with PartialFolder(full) as mine:
        assert not folder.exists() and mine.folder.is_dir()
    assert names(full.parent) == ["data"]


def test_a_run_killed_while_it_replaced_the_folder(full):
    """What it had moved away comes back."""
    left = full.parent / ".data.partial-0123"
    left.mkdir()
    full.rename(left.with_name(f"{left.name}.old"))
    left.with_name(f"{left.name}.lock").touch()
    PartialFolder(full).remove()
    assert (full / "file").read_text() == "old" and names(full.parent) == ["data"]


def test_file_systems_without_locks(full, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = PartialFolder(full)
    with PartialFolder(full) as partial:
        (partial.folder / "file").write_text("new")
        partial.publish()
    assert left.folder.is_dir() and (full / "file").read_text() == "new"
    left.remove()
    assert names(full.parent) == ["data"]


@pytest.mark.parametrize(("mode", "content"), [("w", "é\n"), ("wb", b"\xff")])
def test_a_file_appears_when_it_is_complete(tmp_path, mode, content):
    path = tmp_path / "file"
    with atomic_writer(path, mode) as stream:
        stream.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content.encode() if mode == "w" else content)
    with pytest.raises(KeyError), atomic_writer(path, mode) as stream:
        stream.write(content * 2)
        raise KeyError
    assert len(path.read_bytes()) == len(content.encode() if mode == "w" else content)
    assert names(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "only a part of one"),
        (b"\xff", "only a part of one"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"9" * 5000, "not a usable JSON file"),
        (b'{"a": {"b": 1, "b": 2}}', "has the key 'b' twice"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_json(path, "make it again")
    assert str(caught.value).startswith(f"{path}: ") and "; make it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_from_other_systems(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"é": [1]}).encode())
    assert read_json(path) == {"é": [1]}
    assert read_json(path, object_hook=len) == 1
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)
