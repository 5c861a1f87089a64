"""TensorBoard's event files over killed and resumed runs: every iteration once, as in metrics.json."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longtail_det2.engine import lazy, trainer, training


@pytest.fixture
def log_every_step(monkeypatch):
    original = training.default_hooks
    monkeypatch.setattr(trainer, "default_hooks", lambda **kw: original(**{**kw, "log_period": 1}))


def events(folder, name="total_loss"):
    """Iterations that TensorBoard shows of a scalar, in its order."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(name)]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["iteration"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_a_resumed_run_shows_every_iteration_once(yaml_args, lazy_args, tmp_path, log_every_step, form):
    """The run was killed after iteration 3; its newest checkpoint is that of iteration 1."""
    run = tmp_path / "run"

    def train(*flags):
        if form == "yaml":
            trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", flags=flags, max_iter=5))
        else:
            options = ("train.checkpointer.period=2", "train.log_period=1")
            lazy.main(lazy_args(*options, flags=flags, max_iter=5))

    train()
    assert events(run) == [0, 1, 2, 3, 4]
    (run / "last_checkpoint").write_text("model_0000001.pth")
    train("--resume")
    assert events(run) == logged(run) == [0, 1, 2, 3, 4]
    assert events(run, "bbox/mAP50") == [5]


def test_a_run_resumed_before_its_first_checkpoint_begins_again(yaml_args, tmp_path, log_every_step):
    run = tmp_path / "run"
    trainer.main(yaml_args(max_iter=3))
    for name in ("last_checkpoint", "model_final.pth"):
        (run / name).unlink()
    trainer.main(yaml_args(flags=["--resume"], max_iter=3))
    assert events(run) == logged(run) == [0, 1, 2]


def test_the_iteration_of_the_checkpoint_is_shown_although_the_run_was_killed_before_it(
    yaml_args, tmp_path, log_every_step, monkeypatch
):
    """Checkpoints are written before the log: a kill in between loses that iteration's line."""
    run, killed = tmp_path / "run", KeyboardInterrupt("killed")

    def kill(self):
        if self.trainer.iter == 1:
            for writer in self._writers:
                monkeypatch.setattr(writer, "write", lambda: None)  # a killed process writes nothing more
            raise killed
        original(self)

    original = training.Writers.after_step
    monkeypatch.setattr(training.Writers, "after_step", kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", max_iter=4))
    assert events(run) == logged(run) == [0]
    monkeypatch.setattr(training.Writers, "after_step", original)
    trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", flags=["--resume"], max_iter=4))
    assert events(run) == logged(run) == [0, 1, 2, 3]
