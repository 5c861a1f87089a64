"""Seesaw loss in whole runs: every detector, its counts in checkpoints, over ranks and after a kill."""

import time

import pytest
import torch
from runs import SECONDS, finish, kill, logged, start_ranks, weights

from longtail_det2.cli.run import run
from longtail_det2.engine import lazy, trainer

LOSS = ("MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "SeesawLoss")
COUNTS = "classification_loss.class_counts"
HEADS = "roi_heads.box_predictor"
CASCADE = "shapes/cascade_rcnn_tiny_softmax_shapes.yaml"
MASK = "shapes/mask_rcnn_tiny_softmax_shapes.yaml"
NORMALISED = (
    *("MODEL.ROI_BOX_HEAD.CLASSIFIER", "NormalizedLinear"),
    *("MODEL.ROI_MASK_HEAD.PREDICTOR", "NormalizedConv2d"),
)
LAZY = """
from detectron2.config import LazyCall as L

from longtail_det2 import model_zoo
from longtail_det2.modeling.losses import SeesawLoss
from longtail_det2.modeling.roi_heads import build_classifier, build_mask_predictor

base = model_zoo.get_config("shapes/mask_rcnn_tiny_softmax_shapes.py")
dataloader, datasets, lr_multiplier, model = base.dataloader, base.datasets, base.lr_multiplier, base.model
optimizer, train = base.optimizer, base.train

heads = model.roi_heads
heads.box_predictor.classification_loss = L(SeesawLoss)(num_classes="${..num_classes}")
heads.box_predictor.classifier = L(build_classifier)(name="NormalizedLinear")
heads.mask_head.predictor = L(build_mask_predictor)(name="NormalizedConv2d")
"""


def saved(tmp_path):
    return weights(tmp_path / "run")


def first(tmp_path, key):
    return next(iter(logged(tmp_path / "run", key).values()))


def test_yaml_and_lazy_are_the_same(yaml_args, lazy_args, tmp_path):
    """Mask R-CNN with both normalised layers; regions are counted and saved."""
    assert run(trainer.main, yaml_args(*LOSS, *NORMALISED, "SEED", "3", config=MASK)) == 0
    state = saved(tmp_path)
    assert state[f"{HEADS}.cls_score.weight"].shape == (4 + 2, 16)
    counts = state[f"{HEADS}.{COUNTS}"]
    assert counts.dtype == torch.int64 and counts[-1] > 0 and counts[:4].sum() > 0
    assert first(tmp_path, "loss_objectness") > 0
    (tmp_path / "run").rename(tmp_path / "yaml")
    (tmp_path / "config.py").write_text(LAZY)
    assert run(lazy.main, lazy_args("train.seed=3", config=tmp_path / "config.py")) == 0
    torch.testing.assert_close(saved(tmp_path), state, rtol=0, atol=0)


def test_every_stage_of_a_cascade_counts_for_itself(yaml_args, tmp_path):
    assert run(trainer.main, yaml_args(*LOSS, *NORMALISED[:2], config=CASCADE)) == 0
    state = saved(tmp_path)
    counts = [state[f"{HEADS}.{stage}.{COUNTS}"] for stage in range(3)]
    assert all(one[:4].sum() > 0 for one in counts)
    assert not torch.equal(counts[0], counts[2])  # other boxes, and other overlaps asked for
    assert first(tmp_path, "loss_objectness_stage2") > 0


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_dense_detectors(yaml_args, tmp_path, detector):
    options = ("MODEL.DENSE_HEAD.CLASSIFICATION_LOSS", "FocalSeesawLoss")
    config = f"shapes/{detector}_tiny_focal_shapes.yaml"
    assert run(trainer.main, yaml_args(*options, config=config)) == 0
    counts = saved(tmp_path)[f"head.{COUNTS}"]
    assert counts[:4].sum() > 0 and counts[-1] == 0
    assert 0 < first(tmp_path, "loss_objectness") < 10


def test_evaluation_leaves_the_counts(yaml_args, tmp_path):
    assert run(trainer.main, yaml_args(*LOSS, "TEST.EVAL_PERIOD", "1", "SEED", "2")) == 0
    often = saved(tmp_path)[f"{HEADS}.{COUNTS}"]
    (tmp_path / "run").rename(tmp_path / "often")
    assert run(trainer.main, yaml_args(*LOSS, "DATASETS.TEST", "()", "SEED", "2")) == 0
    assert torch.equal(saved(tmp_path)[f"{HEADS}.{COUNTS}"], often)


def test_counts_of_other_classes_are_refused(yaml_args, pictures, tmp_path, capsys):
    """Also with as many classes; the parts named in MODEL.RESET_WEIGHTS begin anew."""
    assert run(trainer.main, yaml_args(*LOSS, "DATASETS.TEST", "()", max_iter=2)) == 0
    (tmp_path / "run").rename(tmp_path / "first")
    stores = f"mini_train={pictures}/renamed,mini_test={pictures}/renamed"
    options = (
        *LOSS,
        *("MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth"), "DATASETS.STORES", stores),
        *("DATASETS.TEST", "()"),
    )
    assert run(trainer.main, yaml_args(*options, max_iter=1)) == 2
    message = capsys.readouterr().err
    assert "wolf" in message and "MODEL.RESET_WEIGHTS" in message
    assert run(trainer.main, yaml_args(*options, "MODEL.RESET_WEIGHTS", f"{HEADS},", max_iter=1)) == 0
    before = weights(tmp_path / "first")[f"{HEADS}.{COUNTS}"]
    assert 0 < saved(tmp_path)[f"{HEADS}.{COUNTS}"].sum() < before.sum()


def test_a_checkpoint_with_another_loss_says_so(yaml_args, tmp_path, capsys):
    """K + 1 logits do not become K + 2."""
    assert run(trainer.main, yaml_args("DATASETS.TEST", "()", max_iter=1)) == 0
    (tmp_path / "run").rename(tmp_path / "first")
    options = (*LOSS, "MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth"))
    assert run(trainer.main, yaml_args(*options, max_iter=1)) == 2
    assert "cls_score" in capsys.readouterr().err


def command(repository, args, *flags):
    config = ("--config-file", "shapes/faster_rcnn_tiny_softmax_shapes.yaml")
    return [repository / "scripts/train_net.py", *config, *flags, *args.opts]


@pytest.mark.slow
def test_two_ranks_count_together_and_go_on_after_a_kill(repository, yaml_args, tmp_path):
    """All proposals are kept, so that one process with the whole batch has the same regions."""
    same = [
        *("MODEL.TINY_BACKBONE.NORM", "", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.NMS_THRESH", "1.0"),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SEED", "1"),
    ]
    options = [
        *(*LOSS, *same, "SOLVER.IMS_PER_BATCH", "4", "DATASETS.TEST", "()"),
        *("SOLVER.CHECKPOINT_PERIOD", "4"),
    ]
    args, log = yaml_args(*options, max_iter=12), tmp_path / "output.txt"
    trainer.main(args)
    (tmp_path / "run").rename(tmp_path / "one")
    processes = start_ranks(command(repository, args), log)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "run/model_0000007.pth").exists():
        assert time.monotonic() < deadline and processes[0].poll() is None, log.read_text()
        time.sleep(0.05)
    kill(processes)
    assert not (tmp_path / "run/model_final.pth").exists()
    finish(start_ranks(command(repository, args, "--resume"), log), log)
    assert "Continuing at iteration" in log.read_text()
    one, two = weights(tmp_path / "one"), saved(tmp_path)
    assert torch.equal(two[f"{HEADS}.{COUNTS}"], one[f"{HEADS}.{COUNTS}"])
    assert two[f"{HEADS}.{COUNTS}"][:4].sum() > 0
    name = f"{HEADS}.cls_score.weight"
    torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
