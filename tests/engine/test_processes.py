"""Several processes (gloo on CPUs): the same training as one, the same evaluation, and nothing that hangs."""

import itertools
import json

import pytest
import torch
from runs import run_script

from longtail_det2.engine import trainer

pytestmark = pytest.mark.slow

COMPARABLE = [
    # Without batch statistics and without drawing lots, an image's losses depend on the image alone: all
    # anchors and proposals are kept. Every image has as many of them, as losses are averaged over RoIs.
    *("MODEL.TINY_BACKBONE.NORM", "", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.NMS_THRESH", "1.0"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SEED", "1"),
]

SAMPLING_FREE = "projects/SamplingFree/configs/shapes"
DENSE = [
    *("MODEL.TINY_BACKBONE.NORM", "", "MODEL.RETINANET.NORM", "", "MODEL.FCOS.NORM", ""),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.05", "SEED", "1"),
    # The picture without objects gives one rank fewer positive anchors than the other.
    *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),
]

BREAK = """
import sys
from detectron2.utils import comm
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.engine import trainer
from longtail_det2.cli.run import parse_args, run
from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss

WHAT = {what!r}
original, calls = SoftmaxCrossEntropyLoss.unreduced, []

def unreduced(self, logits, targets):
    calls.append(0)
    losses = original(self, logits, targets)
    if comm.get_rank() == 1 and len(calls) == 3:
        if WHAT == "exception":
            raise RuntimeError("a fault on the second process")
        losses = {{name: value * float("nan") for name, value in losses.items()}}
    return losses

SoftmaxCrossEntropyLoss.unreduced = unreduced
if __name__ == "__main__":
    sys.exit(run(trainer.main, parse_args()))
"""


def launch(script, options, how, config="shapes/faster_rcnn_tiny_softmax_shapes.yaml"):
    """Runs a script in two processes."""
    config = ("--config-file", config)
    if how == "torchrun":
        torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
        return run_script(*torchrun, script, *config, *options)
    return run_script(script, *config, "--num-gpus", "2", *options)


def run_state(folder):
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    values = checkpoint["trainer"]["hooks"]["MetricsLog"]["values"]
    losses = {
        name: torch.tensor([value for value, _ in pairs]) for name, pairs in values.items() if "loss" in name
    }
    return checkpoint["model"], losses


def one_and_two(yaml_args, repository, tmp_path, options, **config):
    """Folders of a training in one process and of the same one in two."""
    run = tmp_path / "run"
    trainer.main(yaml_args(*options, max_iter=8, **config))
    run.rename(tmp_path / "one")
    args = yaml_args(*options, max_iter=8, **config)
    done = launch(repository / "scripts/train_net.py", args.opts, "flags", **config)
    assert done.returncode == 0, done.stderr
    return tmp_path / "one", run


def assert_same_training(one, two):
    (weights, losses), (twin, twin_losses) = run_state(one), run_state(two)
    assert len(losses["total_loss"].unique()) == 8
    for name in losses:
        torch.testing.assert_close(twin_losses[name], losses[name], rtol=1e-4, atol=1e-6)
    for name, value in weights.items():
        exact = {} if value.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(twin[name], value, **{"rtol": 1e-3, "atol": 1e-6, **exact})


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        ("SoftmaxCrossEntropyLoss", "shapes/faster_rcnn_tiny_softmax_shapes.yaml"),
        ("SeesawLoss", "shapes/faster_rcnn_tiny_softmax_shapes.yaml"),
        ("SigmoidBCELoss", f"{SAMPLING_FREE}/faster_rcnn_tiny_sampling_free_shapes.yaml"),
    ],
)
def test_two_ranks_with_half_batches_follow_one_with_the_whole(yaml_args, repository, tmp_path, loss, config):
    """Also in what is counted: by the loss, of anchors, for thresholds."""
    options = (*COMPARABLE, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True")
    options += ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", loss)
    one, two = one_and_two(yaml_args, repository, tmp_path, options, config=config)
    assert_same_training(one, two)
    total = run_state(one)[1]["total_loss"]
    assert total[0] > total[-1] or "sampling_free" in config  # where the losses are scaled
    results = [json.loads((run / "inference/mini_test/results.json").read_text()) for run in (one, two)]
    for alone, together in zip(*(found["classes"] for found in results), strict=True):
        assert together["AP"] == pytest.approx(alone["AP"], abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("detector", "loss"),
    [
        *itertools.product(["retinanet", "fcos"], ["SigmoidFocalLoss", "SoftmaxCrossEntropyLoss"]),
        ("sampling_free", "SigmoidBCELoss"),
    ],
)
def test_two_ranks_of_a_dense_detector_follow_one(yaml_args, repository, tmp_path, detector, loss):
    """Each rank divides by what it counted of the positive anchors of all ranks."""
    config = f"shapes/{detector}_tiny_focal_shapes.yaml"
    if detector == "sampling_free":
        config = f"{SAMPLING_FREE}/fcos_tiny_sampling_free_shapes.yaml"
    options = [*DENSE, "MODEL.DENSE_HEAD.CLASSIFICATION_LOSS", loss]
    one, two = one_and_two(yaml_args, repository, tmp_path, options, config=config)
    assert_same_training(one, two)
    if detector == "sampling_free":
        return
    averages = [run_state(run)[0]["loss_normalizer.average"] for run in (one, two)]
    assert averages[0] == averages[1] != (100.0 if detector == "retinanet" else 300.0)


def test_two_ranks_of_a_classifier_follow_one(yaml_args, repository, tmp_path):
    """Without batch normalisation; with class-aware sampling, whose images the ranks share out."""
    config = "projects/DistributionBalanced/configs/shapes/classifier_tiny_distribution_balanced_shapes.yaml"
    options = [*DENSE, "MODEL.IMAGE_HEAD.FC_DIM", "0"]
    one, two = one_and_two(yaml_args, repository, tmp_path, options, config=config)
    assert_same_training(one, two)
    results = [json.loads((run / "inference/mini_test/results.json").read_text()) for run in (one, two)]
    assert results[1]["summary"] == {
        task: pytest.approx(means, nan_ok=True) for task, means in results[0]["summary"].items()
    }


def test_evaluation_over_ranks_is_that_of_one(yaml_args, repository, tmp_path):
    trainer.main(yaml_args(max_iter=3))
    run = tmp_path / "run"
    folder = run / "inference/mini_test"
    one = {name: (folder / name).read_text() for name in ("results.json", "predictions.csv")}
    args = yaml_args("MODEL.WEIGHTS", str(run / "model_final.pth"))
    for path in folder.iterdir():
        path.unlink()
    script = repository / "scripts/train_net.py"
    done = launch(script, ["--eval-only", *args.opts], "torchrun")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "results.json").read_text()) == json.loads(one["results.json"])
    rows = sorted((folder / "predictions.csv").read_text().splitlines())
    assert rows == sorted(one["predictions.csv"].splitlines()) and len(rows) > 1


@pytest.mark.parametrize(
    ("loss", "branch"), [("SoftmaxCrossEntropyLoss", "BoxBranch"), ("SigmoidBCELoss", "TSDBoxBranch")]
)
def test_images_without_boxes_do_not_hang(yaml_args, repository, tmp_path, loss, branch):
    """With one image a rank, ranks meet the image without boxes alone."""
    options = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", loss)
    options += ("MODEL.ROI_BOX_HEAD.BRANCH", branch)
    args = yaml_args(*options, max_iter=10)
    done = launch(repository / "scripts/train_net.py", args.opts, "flags")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model_final.pth").is_file()


@pytest.mark.parametrize("how", ["flags", "torchrun"])
@pytest.mark.parametrize("what", ["exception", "nan"])
def test_trouble_on_one_rank_stops_all_with_its_message(yaml_args, tmp_path, how, what):
    script = tmp_path / "broken.py"
    script.write_text(BREAK.format(what=what))
    done = launch(script, yaml_args(max_iter=400).opts, how)
    assert done.returncode != 0
    if what == "exception":
        assert "RuntimeError: a fault on the second process" in done.stderr
    else:
        assert "training stopped in iteration 2: loss_cls = nan" in done.stderr
        assert "(process 1)" in done.stderr
