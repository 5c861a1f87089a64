import json
import math
import random

import numpy as np
import pytest
import torch

from longtail_det2.engine import lazy, trainer
from longtail_det2.engine.training_step import ResumableLoader
from longtail_det2.evaluation.evaluator import StoreEvaluator


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_yaml_trains_and_evaluates(yaml_args, tmp_path, loss):
    results = trainer.main(yaml_args(config=f"shapes/faster_rcnn_tiny_{loss}_shapes.yaml"))
    assert {"mAP50", "mAP50_expanded", "mAP50_leaves"} <= set(results["bbox"])
    run = tmp_path / "run"
    assert (run / "model_final.pth").is_file() and list(run.glob("events.out.tfevents*"))
    assert (run / "inference/mini_test/predictions.csv").is_file()
    assert len(json.loads((run / "inference/mini_test/results.json").read_text())["classes"]) == 4
    assert math.isfinite(losses(run)[2])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_lazy_trains_and_evaluates(lazy_args, tmp_path, loss):
    results = lazy.main(lazy_args(config=f"shapes/faster_rcnn_tiny_{loss}_shapes.py"))
    assert {"mAP50", "mAP50_expanded", "mAP50_leaves"} <= set(results["bbox"])
    run = tmp_path / "run"
    assert (run / "model_final.pth").is_file() and (run / "inference/mini_test/predictions.csv").is_file()
    assert math.isfinite(losses(run)[2])


@pytest.mark.parametrize("front", ["yaml", "lazy"])
def test_evaluators_are_built_once(yaml_args, lazy_args, monkeypatch, front):
    """Before training, so that a wrong one is an error then; they serve every evaluation of the run."""
    built, original = [], StoreEvaluator.__init__

    def count(self, dataset, *args, **kwargs):
        built.append(dataset)
        original(self, dataset, *args, **kwargs)

    monkeypatch.setattr(StoreEvaluator, "__init__", count)
    if front == "yaml":
        trainer.main(yaml_args("TEST.EVAL_PERIOD", "1"))
    else:
        lazy.main(lazy_args("train.eval_period=1"))
    assert built == ["mini_test"]


def test_lazy_and_yaml_training_are_the_same(yaml_args, lazy_args, tmp_path):
    trainer.main(yaml_args())
    weights = torch.load(tmp_path / "run/model_final.pth")["model"]
    (tmp_path / "run").rename(tmp_path / "yaml")
    lazy.main(lazy_args())
    twin = torch.load(tmp_path / "run/model_final.pth")["model"]
    assert all(torch.equal(weights[name], twin[name]) for name in weights)


def test_training_is_a_function_of_the_seed(yaml_args, tmp_path):
    runs = []
    for seed in (1, 1, 2):
        trainer.main(yaml_args("SEED", str(seed)))
        runs.append(losses(tmp_path / "run"))
        (tmp_path / "run").rename(tmp_path / f"run{len(runs)}")
    assert runs[0] == runs[1] != runs[2]


def test_resume_goes_on_with_everything(yaml_args, tmp_path):
    """Weights, optimizer, schedule, iteration, images and the model's random numbers."""
    options = ("SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.BASE_LR", "0.001")
    trainer.main(yaml_args(*options, max_iter=4))
    run = tmp_path / "run"
    whole = torch.load(run / "model_final.pth")
    (run / "last_checkpoint").write_text("model_0000001.pth")
    seen = []
    original = trainer.Trainer.build_train_loader

    class Spy(trainer.Trainer):
        @classmethod
        def build_train_loader(cls, cfg, start=0):
            seen.append(start)
            return original(cfg, start)

    cfg = trainer.configure(yaml_args(*options, flags=["--resume"], max_iter=4))
    resumed = Spy(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert resumed.parts.scheduler.last_epoch == 2
    assert resumed.step.optimizer.state_dict()["state"]
    resumed.train()
    assert seen == [4]  # two iterations of two images
    again = torch.load(run / "model_final.pth")
    assert again["trainer"]["iteration"] == whole["trainer"]["iteration"] == 3
    assert again["trainer"]["hooks"]["LRScheduler"] == whole["trainer"]["hooks"]["LRScheduler"]
    assert_equal_state(again, whole)
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2, 3]


def assert_equal_state(one, two):
    """Weights, momenta and raw losses of two checkpoints, bit for bit."""
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in two["model"])
    states = [data["trainer"]["optimizer"]["state"] for data in (one, two)]
    for key, value in states[1].items():
        assert all(torch.equal(states[0][key][name], value[name]) for name in value)
    losses = [data["trainer"]["hooks"]["MetricsLog"]["values"]["total_loss"] for data in (one, two)]
    assert losses[0] == losses[1]


def test_lazy_resume(lazy_args, tmp_path):
    lazy.main(lazy_args(max_iter=2))
    lazy.main(lazy_args(flags=["--resume"], max_iter=4))
    last = torch.load(tmp_path / "run/model_final.pth")["trainer"]
    assert last["iteration"] == 3 and last["hooks"]["LRScheduler"]["last_epoch"] == 4
    assert last["optimizer"]["state"]


def test_eval_only_needs_no_training_data(yaml_args, lazy_args, tmp_path, pictures):
    trained = trainer.main(yaml_args())
    weights = str(tmp_path / "run/model_final.pth")
    found = trainer.main(
        yaml_args("MODEL.WEIGHTS", weights, "DATASETS.TRAIN", "shapes_train", flags=["--eval-only"])
    )
    assert found["bbox"]["mAP50"] == pytest.approx(trained["bbox"]["mAP50"])
    assert "mAP50_tail" in found["bbox"]  # by the statistics in the folder of the run
    twin = lazy.main(lazy_args(f"train.init_checkpoint={weights}", flags=["--eval-only"]))
    assert twin["bbox"]["mAP50"] == pytest.approx(trained["bbox"]["mAP50"])


def test_class_aware_and_repeat_factor_samplers_train(yaml_args):
    for sampler in ("ClassAwareTrainingSampler", "RepeatFactorTrainingSampler"):
        options = ("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", "0.5")
        assert trainer.main(yaml_args(*options, max_iter=1))


def test_resumable_loader_builds_late():
    built = []

    def draw():
        return torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 - the global generator

    def build(start, seed):
        built.append((start, seed))
        return iter([[{"image_id": number}] for number in range(start, start + 3)])

    loader = ResumableLoader(build, batch_size=5, seed=7)
    batches = iter(loader)
    loader.start_iter = 2
    assert not built
    assert next(batches) == [{"image_id": 10}] and built == [(10, 7)] and loader.image_ids == ["10"]
    drawn = draw()
    next(batches)
    assert draw() != drawn
    again = ResumableLoader(build, batch_size=5, seed=7)
    again.start_iter = 2
    torch.rand(3)
    next(iter(again))
    assert draw() == drawn
