"""TensorBoard's event files over killed and resumed runs: every iteration once, as in metrics.json."""

import pytest
from runs import logged, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longtail_det2.engine import metrics_log, trainer


def events(folder, name="total_loss"):
    """Iterations that TensorBoard shows of a scalar, in its order."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(name)]


def test_a_resumed_run_shows_every_iteration_once(front, tmp_path):
    """The run was killed after iteration 3; its newest checkpoint is that of iteration 1."""
    run = tmp_path / "run"
    options = ("SOLVER.CHECKPOINT_PERIOD", "2"), ("train.checkpointer.period=2",)
    front.train(*options, max_iter=5)
    assert events(run) == [0, 1, 2, 3, 4]
    (run / "last_checkpoint").write_text("model_0000001.pth")
    front.train(*options, flags=["--resume"], max_iter=5)
    assert events(run) == list(logged(run)) == [0, 1, 2, 3, 4]
    assert events(run, "bbox/mAP50") == [5]


def test_a_finished_run_writes_the_same_when_resumed_and_one_without_a_checkpoint_begins_again(
    yaml_args, tmp_path
):
    run = tmp_path / "run"
    trainer.main(yaml_args(max_iter=3))
    before = metrics(run)
    trainer.main(yaml_args(flags=["--resume"], max_iter=3))
    assert metrics(run) == before
    for name in ("last_checkpoint", "model_final.pth"):
        (run / name).unlink()
    trainer.main(yaml_args(flags=["--resume"], max_iter=3))
    assert events(run) == list(logged(run)) == [0, 1, 2]


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
    assert events(run) == list(logged(run)) == [0]
    monkeypatch.setattr(metrics_log.MetricsLog, "after_step", original)
    trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "2", flags=["--resume"], max_iter=4))
    assert events(run) == list(logged(run)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("when", "period"), [(0, "20"), (1, "1"), (2, "20")])
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
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    evaluated = list(logged(tmp_path / "run", "bbox/mAP50"))
    assert evaluated == events(tmp_path / "run", "bbox/mAP50") == [1, 3, 6]


def test_a_second_run_in_a_folder_does_not_mix_with_the_first(yaml_args, tmp_path, caplog):
    trainer.main(yaml_args(max_iter=3))
    first = (tmp_path / "run/metrics.json").read_text()
    trainer.main(yaml_args(max_iter=2))
    assert (tmp_path / "run/metrics.1.json").read_text() == first
    assert list(logged(tmp_path / "run")) == events(tmp_path / "run") == [0, 1]
    log = (tmp_path / "run/log.txt").read_text()
    assert "WARNING" in log and "the folder of another run" in log
