import json
import shutil

import pytest
import torch

from longtail_det2 import model_zoo
from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import read_weights, sha256_of
from longtail_det2.cli import main
from longtail_det2.config_files import load_cfg
from longtail_det2.engine.build import build_model
from longtail_det2.export import load_detector
from longtail_det2.export.graph import detect
from longtail_det2.export.source import to_input
from longtail_det2.model_zoo.publishing import find_checkpoint_file, publish, result_table
from longtail_det2.utils.errors import ConfigError

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that a test may spoil."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def test_published_weights_detect_the_same(run, tmp_path, tiny_options, picture):
    done = publish(run, tmp_path / "out")
    original, sha256 = run / "model_final.pth", sha256_of(done.weights)
    assert done.weights.name == f"model_final_{sha256[:8]}.safetensors"
    assert done.document["weights"] == {"file": done.weights.name, "sha256": sha256}
    ours, theirs = (read_weights(path) for path in (done.weights, original))
    assert ours.class_ids == theirs.class_ids and ours.iteration == 20
    with torch.no_grad():
        ours, theirs = (
            detect(load_detector(CONFIG, path, tiny_options).model, to_input(picture, 96, 160))
            for path in (done.weights, original)
        )
    assert len(ours["scores"]) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_folder(run, tmp_path):
    done = publish(run, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "classes.json", "config.yaml", "metrics.json", done.weights.name]
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert classes["ids"][1] == "/m/1" and classes["names"][1] == "/M/1"
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics == done.document
    wanted = {"config": CONFIG, "iterations": 20, "num_classes": 9, "seed": 1, "train": ["shapes_train"]}
    wanted["results"] = {"shapes_validation": {"bbox/mAP50": 12.5}}  # no NaN
    assert wanted.items() <= metrics.items() and metrics["batch_size"] == 8
    card = (tmp_path / "out/README.md").read_text()
    for fact in (CONFIG, "| iterations | 20 |", "| seed | 1 |", "shapes_train", "12.50", done.weights.name):
        assert fact in card
    config = (tmp_path / "out/config.yaml").read_text()
    assert "/somewhere" not in config and load_cfg(tmp_path / "out/config.yaml").INPUT.MIN_SIZE_TEST == 96


def test_what_a_run_does_not_say_is_not_invented(run, tmp_path):
    between = publish(run / "model_0000009.pth", tmp_path / "between").document
    assert between["iterations"] == 10 and between["results"] == {}
    assert "no evaluation of these weights" in result_table(between)
    for name in ("run.json", "metrics.json"):
        (run / name).unlink()
    shutil.rmtree(run / "inference")
    publish(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| config | not recorded" in card and "| seed | not recorded" in card
    assert json.loads((tmp_path / "out/classes.json").read_text())["names"] is None


def test_lazy_run(run, tmp_path):
    (run / "config.yaml").write_text(
        "model: {_target_: some.Model, norm: !!python/name:torch.nn.BatchNorm2d ''}\n"
        "dataloader: {train: {dataset: {names: mine_train}, total_batch_size: 4}, "
        "test: {dataset: {names: [mine_val]}}, evaluator: {output_dir: /home/me}}\n"
        "train: {seed: 7, output_dir: /home/me/run, init_checkpoint: /home/me/r50.pkl}\n"
    )
    metrics = publish(run, tmp_path / "out", name="own/config.py").document
    assert (metrics["config"], metrics["batch_size"], metrics["train"]) == (
        "own/config.py",
        4,
        ["mine_train"],
    )
    assert metrics["results"] == {"mine_val": {"bbox/mAP50": 12.5}}
    config = (tmp_path / "out/config.yaml").read_text()
    assert "/home/me" not in config and "torch.nn.BatchNorm2d" in config and "!!python" not in config


def test_zoo_round_trip(tmp_path, monkeypatch):
    """Publish, get, equal weights; damaged weights are refused."""
    zoo, twin = tmp_path / "zoo", CONFIG.replace(".yaml", ".py")
    cfg = load_cfg(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "5", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    (tmp_path / "run").mkdir()
    checkpointer = ClassAwareCheckpointer(model, str(tmp_path / "run"), class_ids=list("abcde"))
    checkpointer.save("model_final")
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    path = publish(tmp_path / "run", zoo=zoo, name=CONFIG).weights
    monkeypatch.setenv("LONGTAIL_DET2_ZOO", str(zoo))
    assert model_zoo.get_checkpoint(CONFIG) == str(path)
    for name in (CONFIG, twin):
        state = model_zoo.get(name, trained=True, device="cpu").state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    lazy = model_zoo.get_config(twin, trained=True)
    assert lazy.train.init_checkpoint == str(path) and lazy.model.roi_heads.num_classes == 5
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        publish(tmp_path / "run", zoo=zoo, name=CONFIG)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        model_zoo.get(CONFIG, trained=True, device="cpu")


def test_which_checkpoint(run, tmp_path):
    assert find_checkpoint_file(run).name == "model_final.pth"
    (run / "model_final.pth").unlink()
    (run / "last_checkpoint").write_text("model_0000009.pth")
    assert find_checkpoint_file(run).name == "model_0000009.pth"
    (run / "last_checkpoint").write_text("gone.pth")
    for place in (run, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"no (run or )?checkpoint"):
            find_checkpoint_file(place)


def test_errors_write_nothing(run, tmp_path, monkeypatch):
    def fails(pattern, error=ConfigError, **target):
        with pytest.raises(error, match=pattern):
            publish(run, **(target or {"output": tmp_path / "out"}))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("longtail_det2.model_zoo.publishing._card", full)
        fails("No space left", OSError)
    fails("--output or --zoo", output="")
    (run / "run.json").unlink()
    fails("--name", zoo=tmp_path / "zoo")
    (run / "config.yaml").write_text("{")
    fails("not a YAML config")
    (run / "config.yaml").unlink()
    fails(r"config\.yaml")
    data = torch.load(run / "model_final.pth")
    torch.save({"model": data["model"]}, run / "model_final.pth")
    fails("which classes")
    (run / "model_final.pth").write_bytes((run / "model_final.pth").read_bytes()[:5000])
    fails("no complete checkpoint")


def test_command(run, tmp_path, capsys):
    command = ["publish", str(run), "--output", str(tmp_path / "out")]
    assert main(command) == 0 and "| bbox/mAP50 | 12.50 |" in capsys.readouterr().out
    assert main(command) == 2 and "overwritten" in capsys.readouterr().err
