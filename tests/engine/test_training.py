import math

import pytest
from runs import logged

from longtail_det2.engine import lazy, trainer
from longtail_det2.evaluation.evaluator import StoreEvaluator
from longtail_det2.utils.io import read_json


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_trains_and_evaluates(front, tmp_path, monkeypatch, loss):
    """Evaluators are built once, before training, so that a wrong one is an error then."""
    built, original = [], StoreEvaluator.__init__

    def count(self, dataset, *args, **kwargs):
        built.append(dataset)
        original(self, dataset, *args, **kwargs)

    monkeypatch.setattr(StoreEvaluator, "__init__", count)
    suffix = "yaml" if front.name == "yaml" else "py"
    config = f"shapes/faster_rcnn_tiny_{loss}_shapes.{suffix}"
    results = front.train(("TEST.EVAL_PERIOD", "2"), ("train.eval_period=2",), config=config)
    assert {"mAP50", "mAP50_expanded", "mAP50_leaves"} <= set(results["bbox"]) and built == ["mini_test"]
    run = tmp_path / "run"
    assert (run / "model_final.pth").is_file() and list(run.glob("events.out.tfevents*"))
    assert (run / "inference/mini_test/predictions.csv").is_file()
    assert len(read_json(run / "inference/mini_test/results.json")["classes"]) == 4
    assert math.isfinite(logged(run)[2])


def test_as_many_checkpoints_are_kept_as_the_config_says_over_a_resume(front, tmp_path):
    options = (
        ("SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_MAX_TO_KEEP", "2"),
        ("train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"),
    )
    for flags, max_iter in (([], 3), (["--resume"], 4)):
        front.train(*options, flags=flags, max_iter=max_iter)
        kept = sorted(path.name for path in (tmp_path / "run").glob("model_0*.pth"))
        assert kept == [f"model_{max_iter - 2:07}.pth", f"model_{max_iter - 1:07}.pth"]


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
