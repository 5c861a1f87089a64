import json
import shutil

import pytest
import torch

from longtail_det2 import model_zoo
from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import read_weights, sha256_of
from longtail_det2.cli import main
from longtail_det2.config_files import load_cfg
from longtail_det2.export import load_detector
from longtail_det2.export.graph import detect
from longtail_det2.export.source import to_input
from longtail_det2.model_zoo.publishing import find_checkpoint_file, publish
from longtail_det2.utils.errors import ConfigError

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that a test may spoil."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def detections(weights, options, picture):
    model = load_detector(CONFIG, weights, options).model
    with torch.no_grad():
        return detect(model, to_input(picture, 96, 160))


def test_published_weights_detect_the_same(run, tmp_path, tiny_options, picture):
    done = publish(run, tmp_path / "out")
    sha256 = done.document["weights"]["sha256"]
    assert done.weights.name == f"model_final_{sha256[:8]}.safetensors" and sha256_of(done.weights) == sha256
    assert {"trainer", "iteration", "model"} <= set(torch.load(run / "model_final.pth"))
    content = read_weights(done.weights)
    original = torch.load(run / "model_final.pth")["model"]
    assert set(content.tensors) == set(original) and content.iteration == 20
    assert all(torch.equal(content.tensors[name], original[name]) for name in original)
    ours = detections(done.weights, tiny_options, picture)
    theirs = detections(run / "model_final.pth", tiny_options, picture)
    assert len(ours["scores"]) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_folder(run, tmp_path):
    done = publish(run, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "classes.json", "config.yaml", "metrics.json", done.weights.name]
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert classes["ids"][1] == "/m/1" and classes["names"][1] == "/M/1"
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["config"] == CONFIG and metrics["iterations"] == 20 and metrics["num_classes"] == 9
    assert metrics["seed"] == 1 and metrics["train"] == ["shapes_train"] and metrics["batch_size"] == 8
    assert metrics["results"] == {"shapes_validation": {"bbox/mAP50": 12.5}}  # no NaN
    assert metrics == done.document and metrics["weights"]["file"] == done.weights.name
    card = (tmp_path / "out/README.md").read_text()
    for fact in (CONFIG, "| iterations | 20 |", "| seed | 1 |", "shapes_train", "12.50", done.weights.name):
        assert fact in card
    config = (tmp_path / "out/config.yaml").read_text()
    assert "/somewhere" not in config and load_cfg(tmp_path / "out/config.yaml").INPUT.MIN_SIZE_TEST == 96


def test_checkpoint_in_between_has_no_results(run, tmp_path):
    done = publish(run / "model_0000009.pth", tmp_path / "out")
    assert done.weights.name.startswith("model_0000009_") and done.document["results"] == {}
    card = (tmp_path / "out/README.md").read_text()
    assert "no evaluation of these weights" in card and "| iterations | 10 |" in card


def test_what_a_run_does_not_say_is_not_invented(run, tmp_path):
    for name in ("run.json", "metrics.json"):
        (run / name).unlink()
    shutil.rmtree(run / "inference")
    config = (run / "config.yaml").read_text().replace("SEED: 1", "SEED: -1")
    (run / "config.yaml").write_text(config)
    publish(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| config | not recorded" in card and "none was fixed" in card
    assert json.loads((tmp_path / "out/classes.json").read_text())["names"] is None


def test_lazy_run(run, tmp_path):
    (run / "config.yaml").write_text(
        "model: {_target_: some.Model, norm: !!python/name:torch.nn.BatchNorm2d ''}\n"
        "dataloader: {train: {dataset: {names: mine_train}, total_batch_size: 4}, "
        "test: {dataset: {names: [mine_val]}}, evaluator: {output_dir: /home/me}}\n"
        "train: {seed: 7, output_dir: /home/me/run, init_checkpoint: /home/me/r50.pkl}\n"
    )
    publish(run, tmp_path / "out", name="own/config.py")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["seed"], metrics["batch_size"], metrics["train"]) == (7, 4, ["mine_train"])
    assert metrics["results"] == {"mine_val": {"bbox/mAP50": 12.5}}
    config = (tmp_path / "out/config.yaml").read_text()
    assert "/home/me" not in config and "torch.nn.BatchNorm2d" in config and "!!python" not in config
    assert "lazyconfig_train_net.py" in (tmp_path / "out/README.md").read_text()


def test_zoo_round_trip(run, tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    done = publish(run, zoo=zoo)
    monkeypatch.setenv("LONGTAIL_DET2_ZOO", str(zoo))
    assert model_zoo.get_checkpoint(CONFIG) == str(done.weights)
    cfg = model_zoo.get_config(CONFIG, trained=True)
    assert str(done.weights) == cfg.MODEL.WEIGHTS and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 9
    lazy = model_zoo.get_config(CONFIG.replace(".yaml", ".py"), trained=True)
    assert lazy.train.init_checkpoint == str(done.weights) and lazy.model.roi_heads.num_classes == 9
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        publish(run, zoo=zoo)
    publish(run, zoo=zoo, name="shapes/faster_rcnn_tiny_softmax_shapes.yaml")
    data = bytearray(done.weights.read_bytes())
    data[-1] ^= 1
    done.weights.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        model_zoo.get(CONFIG, trained=True, device="cpu")


def test_model_zoo_gives_a_trained_model(tmp_path, monkeypatch):
    """The whole way with a config as it is: publish, get, equal weights."""
    torch.manual_seed(3)
    cfg = load_cfg(CONFIG, ["MODEL.ROI_HEADS.NUM_CLASSES", "5", "MODEL.DEVICE", "cpu"])
    from longtail_det2.engine.build import build_model

    model = build_model(cfg)
    ids = [f"/m/{index}" for index in range(5)]
    (tmp_path / "run").mkdir()
    ClassAwareCheckpointer(model, str(tmp_path / "run"), class_ids=ids).save("model_final")
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    publish(tmp_path / "run", zoo=tmp_path / "zoo", name=CONFIG)
    monkeypatch.setenv("LONGTAIL_DET2_ZOO", str(tmp_path / "zoo"))
    for name in (CONFIG, CONFIG.replace(".yaml", ".py")):
        found = model_zoo.get(name, trained=True, device="cpu")
        state = found.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_classes_that_a_checkpoint_does_not_bear(run, tmp_path):
    data = torch.load(run / "model_final.pth")
    del data["class_ids"]
    torch.save(data, run / "model_final.pth")
    with pytest.raises(ConfigError, match="give them with --classes"):
        publish(run, tmp_path / "out")
    (tmp_path / "classes.json").write_text('{"ids": ["x", "y"], "names": ["X", "Y"]}')
    done = publish(run, tmp_path / "out", class_file=tmp_path / "classes.json")
    assert read_weights(done.weights).class_ids == ("x", "y")
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(ConfigError, match="no list of class ids"):
        publish(run, tmp_path / "out2", class_file=tmp_path / "odd.json")


def test_which_checkpoint(run, tmp_path):
    assert find_checkpoint_file(run).name == "model_final.pth"
    (run / "model_final.pth").unlink()
    (run / "last_checkpoint").write_text("model_0000009.pth")
    assert find_checkpoint_file(run).name == "model_0000009.pth"
    (run / "last_checkpoint").write_text("gone.pth")
    for place in (run, tmp_path):
        with pytest.raises(ConfigError, match="has no checkpoint"):
            find_checkpoint_file(place)
    with pytest.raises(ConfigError, match="no run or checkpoint"):
        find_checkpoint_file(tmp_path / "nowhere")


def test_nothing_half_written(run, tmp_path, monkeypatch):
    from longtail_det2.model_zoo import publishing

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "_card", full)
    with pytest.raises(OSError, match="No space left"):
        publish(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_errors(run, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        publish(run, tmp_path / "taken")
    with pytest.raises(ConfigError, match="--output or --zoo"):
        publish(run)
    (run / "run.json").unlink()
    with pytest.raises(ConfigError, match="give it with --name"):
        publish(run, zoo=tmp_path / "zoo")
    (run / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match="not a YAML config"):
        publish(run, tmp_path / "out")
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="--config-file"):
        publish(run, tmp_path / "out")
    (run / "model_final.pth").write_bytes((run / "model_final.pth").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        publish(run, tmp_path / "out")


def test_command(run, tmp_path, capsys):
    command = ["publish", str(run), "--output", str(tmp_path / "out")]
    assert main(command) == 0 and "| bbox/mAP50 | 12.50 |" in capsys.readouterr().out
    assert main(command) == 2 and "overwritten" in capsys.readouterr().err
