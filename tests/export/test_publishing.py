import json
import shutil

import pytest
import torch
import yaml
from factories import image_label_store
from model_factories import classifier_run

from longtail_det2 import model_zoo
from longtail_det2.checkpoint import ClassAwareCheckpointer
from longtail_det2.checkpoint.weights import read_weights, sha256_of
from longtail_det2.cli import main
from longtail_det2.config_files import load_cfg
from longtail_det2.engine.build import build_model
from longtail_det2.model_zoo.publishing import find_checkpoint_file, publish, result_table
from longtail_det2.utils.errors import ConfigError

CONFIG = "shapes/faster_rcnn_tiny_sigmoid_shapes.yaml"


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that a test may spoil."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def test_folder(run, tmp_path):
    path, document = publish(run, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["README.md", "classes.json", "config.yaml", "metrics.json", path.name]
    sha256 = sha256_of(path)
    assert path.name == f"model_final_{sha256[:8]}.safetensors"
    assert document["weights"] == {"file": path.name, "sha256": sha256}
    published, original = read_weights(path), read_weights(run / "model_final.pth")
    assert published.class_ids == original.class_ids and published.iteration == 20
    assert published.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(value, original.tensors[name]) for name, value in published.tensors.items())
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert classes["ids"][1] == "/m/1" and classes["names"][1] == "/M/1"
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == document
    wanted = {"config": CONFIG, "iterations": 20, "num_classes": 9, "seed": 1, "train": ["shapes_train"]}
    wanted["results"] = {"shapes_validation": {"bbox/mAP50": 12.5}}  # no NaN
    assert wanted.items() <= document.items() and document["batch_size"] == 8
    card = (tmp_path / "out/README.md").read_text()
    for fact in (CONFIG, "| iterations | 20 |", "| seed | 1 |", "shapes_train", "12.50", path.name):
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


def test_classifier_of_images(tmp_path):
    run = classifier_run(tmp_path / "run", image_label_store(tmp_path))
    (run / "metrics.json").write_text('{"iteration": 10, "image_labels/mAP": 12.5, "coco_bbox/AP": 1.5}\n')
    document = publish(run, tmp_path / "out").document
    (results,) = document["results"].values()
    assert results == {"image_labels/mAP": 12.5, "coco_bbox/AP": 1.5}
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "a classifier of images trained" in card


def test_lazy_run(run, tmp_path):
    (run / "config.yaml").write_text(
        "model: {_target_: some.Model, norm: !!python/name:torch.nn.BatchNorm2d '',\n"
        "  strides: !!python/tuple [8, 16], other: !!python/object:some.Thing {width: 3}}\n"
        "dataloader: {train: {dataset: {names: mine_train}, total_batch_size: 4}, "
        "test: {dataset: {names: [mine_val]}}, evaluator: {output_dir: /home/me}}\n"
        "train: {seed: 7, output_dir: /home/me/run, init_checkpoint: /home/me/r50.pkl}\n"
    )
    metrics = publish(run, tmp_path / "out", name="own/config.py").document
    wanted = {"config": "own/config.py", "batch_size": 4, "train": ["mine_train"]}
    assert wanted.items() <= metrics.items()
    assert metrics["results"] == {"mine_val": {"bbox/mAP50": 12.5}}
    text = (tmp_path / "out/config.yaml").read_text()
    model = yaml.safe_load(text)["model"]
    assert model["norm"] == "torch.nn.BatchNorm2d" and model["strides"] == [8, 16] and "/home/me" not in text
    assert model["other"] == {"width": 3}


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
        with pytest.raises(ConfigError, match="no run or checkpoint"):
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
