"""TensorBoard's event files over killed and resumed runs: every iteration once, as in metrics.json."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longtail_det2.engine import lazy, metrics_log, trainer


def events(folder, name="total_loss"):
    """Iterations that TensorBoard shows of a scalar, in its order."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(name)]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["iteration"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_a_resumed_run_shows_every_iteration_once(yaml_args, lazy_args, tmp_path, form):
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


def test_a_run_resumed_before_its_first_checkpoint_begins_again(yaml_args, tmp_path):
    run = tmp_path / "run"
    trainer.main(yaml_args(max_iter=3))
    for name in ("last_checkpoint", "model_final.pth"):
        (run / name).unlink()
    trainer.main(yaml_args(flags=["--resume"], max_iter=3))
    assert events(run) == logged(run) == [0, 1, 2]


def test_the_iteration_of_the_checkpoint_is_shown_although_the_run_was_killed_before_it(
    yaml_args, tmp_path, monkeypatch
):
    """Checkpoints are written before the log: a kill in between loses that iteration's line."""
    run, killed = tmp_path / "run", KeyboardInterrupt("killed")

    def kill(self):
        if self.trainer.iter == 1:
            for writer in self._writers:
                monkeypatch.setattr(writer, "write", lambda: None)  # a killed process writes nothing more
            raise killed
        original(self)

    original = metrics_log.MetricsLog.after_step
    monkeypatch.setattr(metrics_log.MetricsLog, "after_step", kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", max_iter=4))
    assert events(run) == logged(run) == [0]
    monkeypatch.setattr(metrics_log.MetricsLog, "after_step", original)
    trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", flags=["--resume"], max_iter=4))
    assert events(run) == logged(run) == [0, 1, 2, 3]


def without_clocks(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds", "rank_data_time")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines]


@pytest.mark.parametrize("period", ["1", "20"])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_an_interrupted_evaluation_is_made_up(yaml_args, tmp_path, monkeypatch, when, period):
    """Killed in an evaluation whose checkpoint is written: metrics.json becomes that of a whole run."""
    options = ("SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.LOG_PERIOD", period)
    options += ("SEED", "3")
    trainer.main(yaml_args(*options, max_iter=6))
    (tmp_path / "run").rename(tmp_path / "whole")
    done = []

    def test(cls, cfg, model, evaluators=None):
        if len(done) == when:
            for writer in hook._writers:
                monkeypatch.setattr(writer, "write", lambda: None)  # a killed process writes nothing more
            raise KeyboardInterrupt
        done.append(0)
        return original(cfg, model, evaluators)

    original = trainer.Trainer.test
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "test", classmethod(test))
        run = trainer.Trainer(trainer.configure(yaml_args(*options, max_iter=6)))
        hook = next(one for one in run.step._hooks if isinstance(one, metrics_log.MetricsLog))
        run.train()
    trainer.main(yaml_args(*options, flags=["--resume"], max_iter=6))
    assert without_clocks(tmp_path / "run") == without_clocks(tmp_path / "whole")
    evaluated = [line["iteration"] for line in without_clocks(tmp_path / "run") if "bbox/mAP50" in line]
    assert evaluated == [1, 3, 6]
    found = events(tmp_path / "run", "bbox/mAP50")
    assert found == [1, 3, 6]


def test_a_finished_run_that_is_resumed_writes_the_same(yaml_args, tmp_path):
    trainer.main(yaml_args(max_iter=3))
    before = without_clocks(tmp_path / "run")
    trainer.main(yaml_args(flags=["--resume"], max_iter=3))
    assert without_clocks(tmp_path / "run") == before


def test_a_second_run_in_a_folder_does_not_mix_with_the_first(yaml_args, tmp_path, caplog):
    trainer.main(yaml_args(max_iter=3))
    first = (tmp_path / "run/metrics.json").read_text()
    trainer.main(yaml_args(max_iter=2))
    assert (tmp_path / "run/metrics.1.json").read_text() == first
    assert logged(tmp_path / "run") == events(tmp_path / "run") == [0, 1]
    log = (tmp_path / "run/log.txt").read_text()
    assert "WARNING" in log and "the folder of another run" in log
