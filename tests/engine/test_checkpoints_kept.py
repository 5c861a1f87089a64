"""How many checkpoints a run keeps, from YAML and lazy configs, with resumes."""

import pytest

from longtail_det2.cli.run import run
from longtail_det2.engine import lazy, trainer


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("model_0*.pth"))


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_as_many_as_the_config_says_over_a_resume(yaml_args, lazy_args, tmp_path, form):
    def train(max_iter, *flags):
        if form == "yaml":
            options = ("SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_MAX_TO_KEEP", "2")
            trainer.main(yaml_args(*options, flags=flags, max_iter=max_iter))
        else:
            options = ("train.checkpointer.period=1", "train.checkpointer.max_to_keep=2")
            lazy.main(lazy_args(*options, flags=flags, max_iter=max_iter))

    train(3)
    assert checkpoints(tmp_path / "run") == ["model_0000001.pth", "model_0000002.pth"]
    train(4, "--resume")
    assert checkpoints(tmp_path / "run") == ["model_0000002.pth", "model_0000003.pth"]


def test_all_by_default(yaml_args, lazy_args, tmp_path):
    trainer.main(yaml_args("SOLVER.CHECKPOINT_PERIOD", "1", max_iter=3))
    (tmp_path / "run").rename(tmp_path / "yaml")
    lazy.main(lazy_args("train.checkpointer.period=1", "train.checkpointer.max_to_keep=null", max_iter=3))
    assert len(checkpoints(tmp_path / "yaml")) == len(checkpoints(tmp_path / "run")) == 3


def test_numbers_out_of_range_are_told(yaml_args, capsys):
    for key, value in (("SOLVER.CHECKPOINT_PERIOD", "0"), ("SOLVER.CHECKPOINT_MAX_TO_KEEP", "-2")):
        assert run(trainer.main, yaml_args(key, value)) == 2
        assert f"error: {key} " in capsys.readouterr().err
