import os

import pytest

from longtail_det2.utils.partial_folders import make_partial_folder, put_in_place, remove_stale_folders


@pytest.fixture
def full(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("old")
    return tmp_path / "data"


def test_a_complete_folder_takes_the_place_of_another(full):
    new = make_partial_folder(full)
    assert new.name.startswith(".data.partial-") and new.parent == full.parent
    (new / "file").write_text("new")
    put_in_place(new, full)
    assert (full / "file").read_text() == "new" and os.listdir(full.parent) == ["data"]


def test_what_is_there_stays_if_nothing_takes_its_place(full):
    with pytest.raises(OSError):
        put_in_place(full.parent / "absent", full)
    assert (full / "file").read_text() == "old" and os.listdir(full.parent) == ["data"]


def test_folders_of_dead_runs_are_removed(full):
    mine, dead = make_partial_folder(full), make_partial_folder(full)
    dead = dead.rename(dead.with_name(dead.name.replace(f"-{os.getpid()}-", "-999999999-")))
    remove_stale_folders(full)
    assert mine.is_dir() and not dead.exists() and full.is_dir()
