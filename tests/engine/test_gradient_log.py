import json

import torch

from longtail_det2.cli.run import run
from longtail_det2.engine import lazy, trainer
from longtail_det2.engine.gradient_log import CLASS_GRADIENTS_FILE
from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss
from longtail_det2.modeling.losses import softmax_cross_entropy as module

LOG = ("MODEL.ROI_BOX_HEAD.LOG_CLASS_GRADIENTS", "True")
HEAD = "roi_heads.box_predictor"


def written(tmp_path):
    return json.loads((tmp_path / "run" / CLASS_GRADIENTS_FILE).read_text())


def test_sums_are_those_of_the_loss(yaml_args, tmp_path, monkeypatch):
    """Against the gradient by hand, (softmax - one-hot) / R, split by the labels instead of by the sign."""
    wanted = torch.zeros(2, 4, dtype=torch.float64)
    forward = SoftmaxCrossEntropyLoss.unreduced

    def spy(self, logits, targets):
        gradient = logits.detach().softmax(1).double()
        gradient[torch.arange(len(gradient)), targets.classes] -= 1
        own = torch.nn.functional.one_hot(targets.classes, 5).bool()
        wanted[0] -= torch.where(own, gradient, 0)[:, :4].sum(0) / len(gradient)
        wanted[1] += torch.where(own, 0, gradient)[:, :4].sum(0) / len(gradient)
        return forward(self, logits, targets)

    monkeypatch.setattr(module.SoftmaxCrossEntropyLoss, "unreduced", spy)
    assert run(trainer.main, yaml_args(*LOG, "DATASETS.TEST", "()")) == 0
    found = written(tmp_path)
    assert found["class_ids"] == ["animal", "cat", "dog", "ball"] and found["iterations"] == 3
    sums = found["predictors"][HEAD]
    assert set(found["predictors"]) == {HEAD}
    found = torch.tensor([sums["positive"], sums["negative"]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert found[1].gt(0).all() and found[0].gt(0).any()


def test_lazy_cascade_has_sums_of_each_stage(lazy_args, tmp_path):
    options = ("train.log_class_gradients=True", "dataloader.test.dataset.names=[]")
    args = lazy_args(*options, config="shapes/cascade_rcnn_tiny_softmax_shapes.py")
    args.opts = [
        one for one in args.opts if "box_head.fc_dims" not in one and "box_predictor.input_shape" not in one
    ]
    assert run(lazy.main, args) == 0
    assert set(written(tmp_path)["predictors"]) == {f"{HEAD}.{stage}" for stage in range(3)}


def test_without_the_key_there_is_no_file(yaml_args, tmp_path):
    assert run(trainer.main, yaml_args("DATASETS.TEST", "()", max_iter=1)) == 0
    assert not (tmp_path / "run" / CLASS_GRADIENTS_FILE).exists()


def test_dense_detectors_have_none(yaml_args, capsys):
    assert run(trainer.main, yaml_args(*LOG, config="shapes/retinanet_tiny_softmax_shapes.yaml")) == 2
    assert "LOG_CLASS_GRADIENTS" in capsys.readouterr().err


def test_a_resumed_run_adds_up_to_the_same(yaml_args, tmp_path):
    options = (*LOG, "DATASETS.TEST", "()", "SEED", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    assert run(trainer.main, yaml_args(*options, max_iter=4)) == 0
    whole = written(tmp_path)
    (tmp_path / "run/model_final.pth").unlink()
    (tmp_path / "run/model_0000003.pth").unlink()
    (tmp_path / "run/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "run" / CLASS_GRADIENTS_FILE).unlink()
    assert run(trainer.main, yaml_args(*options, flags=["--resume"], max_iter=4)) == 0
    assert written(tmp_path) == whole
