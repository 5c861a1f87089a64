"""A state dict with the names and shapes of the released code becomes weights of the official config."""

import importlib.util

import pytest
import torch
import torchvision

from longtail_det2 import model_zoo
from longtail_det2.engine.build import build_model

CONFIG = "projects/TSD/configs/coco/faster_rcnn_R_50_FPN_tsd_official.yaml"
FCS = (("shared_fcs", 1024), ("TSD_pc_fcs", 1024), ("TSD_pr_fcs", 1024))


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("convert", repository / "scripts/convert_tsd_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(classes):
    """(name, shape of the weight) of all layers behind the backbone; `classes` counts background."""
    for level, channels in enumerate((256, 512, 1024, 2048)):
        yield f"neck.lateral_convs.{level}.conv", (256, channels, 1, 1)
        yield f"neck.fpn_convs.{level}.conv", (256, 256, 3, 3)
    yield "rpn_head.rpn_conv", (256, 256, 3, 3)
    yield "rpn_head.rpn_cls", (3, 256, 1, 1)
    yield "rpn_head.rpn_reg", (12, 256, 1, 1)
    yield "bbox_head.shared_fc.0", (256, 12544)
    for name, width in (("delta_c", 98), ("delta_r", 2)):
        yield f"bbox_head.{name}.0", (256, 256)
        yield f"bbox_head.{name}.2", (width, 256)
    for name, width in FCS:
        yield f"bbox_head.{name}.0", (width, 12544)
        yield f"bbox_head.{name}.1", (width, width)
    for prefix in ("", "TSD_"):
        yield f"bbox_head.{prefix}fc_cls", (classes, 1024)
        yield f"bbox_head.{prefix}fc_reg", (4 * classes, 1024)


def released_weights(classes=81):
    """With a number per row of the predictors: that of its class there."""
    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
    weights = {f"backbone.{name}": torch.zeros(value.shape) for name, value in resnet.state_dict().items()}
    weights = {name: value for name, value in weights.items() if ".fc." not in name}
    for name, shape in layers(classes):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.zeros(shape), torch.zeros(shape[0])
        if "fc_cls" in name:
            weights[f"{name}.bias"] += torch.arange(classes)
        if "fc_reg" in name:
            weights[f"{name}.bias"] += torch.arange(classes).repeat_interleave(4)
    return weights


def test_names_shapes_and_the_place_of_background(script, tmp_path):
    torch.save({"meta": {}, "state_dict": released_weights()}, tmp_path / "released.pth")
    script.main([str(tmp_path / "released.pth"), str(tmp_path / "weights.pth")])
    found = torch.load(tmp_path / "weights.pth", weights_only=True)["model"]
    cfg = model_zoo.get_config(CONFIG)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wanted = build_model(cfg).state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape
        for name, value in wanted.items()
        if "threshold" not in name and "thresh" not in name
    }
    for predictor in ("box_predictor", "box_branch.sibling.predictor"):
        scores, boxes = (found[f"roi_heads.{predictor}.{part}.bias"] for part in ("cls_score", "bbox_pred"))
        assert scores.tolist() == [*range(1, 81), 0]
        assert boxes.tolist() == [label for label in range(1, 81) for _ in range(4)]


@pytest.mark.parametrize(
    ("rename", "what"), [({"bbox_head.": "bbox_head.0."}, "bbox_head.0"), ({"shared_fc.0": "other"}, "other")]
)
def test_other_models_are_refused(script, tmp_path, rename, what):
    (old, new), *_ = rename.items()
    weights = {name.replace(old, new): value for name, value in released_weights(3).items()}
    torch.save(weights, tmp_path / "released.pth")
    with pytest.raises(SystemExit, match=what):
        script.main([str(tmp_path / "released.pth"), str(tmp_path / "weights.pth")])
    assert not (tmp_path / "weights.pth").exists()
