"""Which checkpoints of a run are kept, also over a resume."""

import types

import pytest
from torch import nn

from longtail_det2.checkpoint import ClassAwareCheckpointer, PeriodicCheckpoints
from longtail_det2.utils.errors import ConfigError


def train(folder, start, stop, *, keep, period=2, max_iter=100):
    """Runs the hook from iteration `start` to `stop`, as training does."""
    hook = PeriodicCheckpoints(ClassAwareCheckpointer(nn.Linear(1, 1), str(folder)), period, keep)
    hook.trainer = types.SimpleNamespace(start_iter=start, max_iter=max_iter, iter=start)
    hook.before_train()
    for hook.trainer.iter in range(start, stop):
        hook.after_step()


def kept(folder):
    """Iterations of the checkpoints there, and "final"."""
    names = [path.stem.removeprefix("model_") for path in folder.glob("model_*.pth")]
    return sorted((int(name) if name.isdigit() else name for name in names), key=str)


@pytest.mark.parametrize(
    ("runs", "left"),
    [
        ([(0, 10, 2)], [7, 9]),
        ([(0, 4, 0), (4, 6, 0)], [1, 3, 5]),  # 0 keeps all
        ([(0, 6, 2), (6, 8, 2)], [5, 7]),  # a resumed run counts those from before
        ([(0, 12, 0), (12, 14, 2)], [11, 13]),  # and may keep fewer
        ([(0, 8, 4), (4, 6, 3)], [1, 3, 5]),  # it goes on after 3: later ones, which may be damaged, go first
    ],
)
def test_newest_are_kept(tmp_path, runs, left):
    for start, stop, keep in runs:
        train(tmp_path, start, stop, keep=keep)
    assert kept(tmp_path) == left
    assert (tmp_path / "last_checkpoint").read_text() == f"model_{left[-1]:07}.pth"


def test_the_last_one_of_all_is_always_kept(tmp_path):
    train(tmp_path, 0, 6, keep=1, max_iter=6)
    assert kept(tmp_path) == [5, "final"]


def test_a_new_run_leaves_those_of_others(tmp_path):
    train(tmp_path, 0, 8, keep=2)
    (tmp_path / "model_best.pth").touch()
    train(tmp_path, 0, 6, keep=1, period=3)
    assert kept(tmp_path) == [5, 7, "best"]


def test_checkpoint_that_is_gone_already(tmp_path):
    train(tmp_path, 0, 4, keep=2)
    hook = PeriodicCheckpoints(ClassAwareCheckpointer(nn.Linear(1, 1), str(tmp_path)), 2, 1)
    hook.trainer = types.SimpleNamespace(start_iter=4, max_iter=9, iter=5)
    hook.before_train()
    (tmp_path / "model_0000003.pth").unlink()
    hook.after_step()
    assert kept(tmp_path) == [5]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1), r"SOLVER.CHECKPOINT_PERIOD \(train.checkpointer.period in a lazy config\) is 0"),
        ((3, -1), r"SOLVER.CHECKPOINT_MAX_TO_KEEP \(train.checkpointer.max_to_keep in a lazy config\) is -1"),
    ],
)
def test_numbers_out_of_range(tmp_path, numbers, message):
    with pytest.raises(ConfigError, match=message):
        PeriodicCheckpoints(ClassAwareCheckpointer(nn.Linear(1, 1), str(tmp_path)), *numbers)
