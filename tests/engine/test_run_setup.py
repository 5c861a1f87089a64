"""Between a config and its model: notebooks, the run's record, several runs in one process."""

import json
import logging

import torch
from runs import weights

from longtail_det2.cli.run import run
from longtail_det2.config_files import load_cfg, load_lazy
from longtail_det2.engine import trainer
from longtail_det2.engine.setup import setup


def test_a_notebook_trains_in_two_lines(yaml_args, tmp_path):
    """The config leaves its classes to the data and asks for CUDA, as model_zoo.get_config gives it."""
    args = yaml_args("MODEL.DEVICE", "cuda", max_iter=1)
    cfg = load_cfg(args.config_file, args.opts)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == -1
    assert trainer.Trainer(cfg).train()["bbox"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == -1 and not cfg.is_frozen()
    saved = load_cfg(tmp_path / "run/config.yaml")
    assert saved.MODEL.ROI_HEADS.NUM_CLASSES == 4 and saved.SEED >= 0
    assert ("cuda" if torch.cuda.is_available() else "cpu") == saved.MODEL.DEVICE
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["config"] == args.config_file and record["in_model_zoo"]
    assert record["seed"] == saved.SEED and record["versions"]["torch"] == torch.__version__


def test_record_of_a_run(front, tmp_path):
    args = front.args(("SEED", "5"), ("train.seed=5",), max_iter=1)
    front.main(args)
    folder = tmp_path / "run"
    record = json.loads((folder / "run.json").read_text())
    assert record["config"] == args.config_file and record["options"] == args.opts
    assert record["seed"] == 5 and record["processes"] == 1 and record["arguments"]["resume"] is False
    assert record["machine"]["python"] and "commit" in record
    assert (folder / "config.yaml").is_file() and (folder / "log.txt").is_file()


def test_a_resumed_run_keeps_its_seed(yaml_args, tmp_path):
    trainer.main(yaml_args(max_iter=1))
    seed = json.loads((tmp_path / "run/run.json").read_text())["seed"]
    trainer.main(yaml_args(flags=["--resume"], max_iter=2))
    assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == seed


def test_two_runs_in_one_process_have_a_log_each(yaml_args, tmp_path):
    trainer.main(yaml_args(max_iter=1))
    first = (tmp_path / "run/log.txt").read_text()
    trainer.main(yaml_args("OUTPUT_DIR", str(tmp_path / "second"), max_iter=1))
    assert (tmp_path / "run/log.txt").read_text() == first
    second = (tmp_path / "second/log.txt").read_text()
    starts = [line for line in second.splitlines() if "Starting training" in line]
    handlers = [type(one) for one in logging.getLogger("longtail_det2").handlers]
    assert len(starts) == 1 and handlers.count(logging.StreamHandler) == 2


def test_the_folder_may_be_an_argument(lazy_args, tmp_path):
    args = lazy_args()
    cfg = setup(load_lazy(args.config_file, args.opts), str(tmp_path / "other"))
    assert cfg.train.output_dir == str(tmp_path / "other")
    assert (tmp_path / "other/run.json").is_file() and not (tmp_path / "run").exists()


def test_resuming_nothing_is_said(yaml_args, tmp_path):
    trainer.main(yaml_args(flags=["--resume"], max_iter=1))
    log = (tmp_path / "run/log.txt").read_text()
    assert "WARNING: --resume:" in log and "has no checkpoint" in log


def test_nothing_but_trained_weights_is_evaluated(front, tmp_path, capsys):
    def fails(name="", max_iter=3, flags=()):
        options = (("MODEL.WEIGHTS", str(tmp_path / name)), (f"train.init_checkpoint={tmp_path / name}",))
        args = front.args(*(options if name else ()), flags=flags, max_iter=max_iter)
        assert run(front.main, args) == 2
        return capsys.readouterr().err

    assert "no weights to evaluate" in fails(flags=["--eval-only"])
    front.train(max_iter=1)
    state = weights(tmp_path / "run")
    backbone = {name: value for name, value in state.items() if name.startswith("backbone")}
    torch.save(backbone, tmp_path / "backbone.pth")
    assert "random ones would be evaluated" in fails("backbone.pth", flags=["--eval-only"])
    torch.save({f"other.{name}": value for name, value in state.items()}, tmp_path / "other.pth")
    assert "no weights of this model" in fails("other.pth")
    assert run(front.main, front.args(flags=["--eval-only", "--resume"])) == 0
