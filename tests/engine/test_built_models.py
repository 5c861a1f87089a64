"""A built model is compared with the config: no key of this project may go unused in silence."""

import pytest

from longtail_det2.config import get_cfg
from longtail_det2.config_files import load_cfg
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.engine.build import build_model
from longtail_det2.utils.errors import ConfigError

TINY = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "4"]
FASTER, RETINANET = "shapes/faster_rcnn_tiny_softmax_shapes.yaml", "shapes/retinanet_tiny_focal_shapes.yaml"
PLAIN = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]


@pytest.mark.parametrize("heads", [PLAIN, CASCADE])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CLASSIFICATION_LOSS", "SeesawLoss"),
        ("CLASSIFICATION_LOSS", "Nonsense"),
        ("CLASSIFIER", "NormalizedLinear"),
        ("CLASSIFIER", "Nonsense"),
        ("LOSS_NORMALIZER", "foreground"),
    ],
)
def test_keys_that_detectron2s_heads_do_not_read(heads, key, value):
    cfg = load_cfg(FASTER, [*TINY, *heads, f"MODEL.ROI_BOX_HEAD.{key}", value])
    with pytest.raises(ConfigError) as error:
        build_model(cfg)
    message = str(error.value)
    assert f"MODEL.ROI_BOX_HEAD.{key} is '{value}'" in message and heads[1] in message
    assert "Set MODEL.ROI_HEADS.NAME to MultiLabelROIHeads" in message


def test_keys_of_the_other_family():
    cfg = load_cfg(RETINANET, [*TINY, "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS", "SeesawLoss"])
    with pytest.raises(ConfigError, match=r"MultiLabelRetinaNet\) does not use it: it has no roi_heads"):
        build_model(cfg)
    cfg = load_cfg(FASTER, [*TINY, "MODEL.DENSE_HEAD.CLASSIFICATION_LOSS", "SigmoidBCELoss"])
    with pytest.raises(ConfigError, match=r"DENSE_HEAD.*GeneralizedRCNN.*Set MODEL.META_ARCHITECTURE"):
        build_model(cfg)
    cfg = load_cfg(RETINANET, [*TINY, "MODEL.META_ARCHITECTURE", "RetinaNet"])
    cfg.MODEL.RETINANET.NUM_CLASSES = 4
    cfg.MODEL.DENSE_HEAD.CLASSIFICATION_LOSS = "SigmoidBCELoss"
    with pytest.raises(ConfigError, match="its head is RetinaNetHead"):
        build_model(cfg)


def test_keys_of_other_parts():
    cfg = load_cfg(FASTER, [*TINY, "MODEL.RPN.LOSS_NORMALIZER", "foreground"])
    with pytest.raises(ConfigError, match=r"proposal_generator is RPN. Set MODEL.PROPOSAL_GENERATOR.NAME"):
        build_model(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "NormalizedRPN"
    build_model(cfg)
    cfg = load_cfg(FASTER, [*TINY, "MODEL.ROI_MASK_HEAD.PREDICTOR", "NormalizedConv2d"])
    build_model(cfg)  # without masks
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.NAME = True, "MaskRCNNConvUpsampleHead"
    with pytest.raises(ConfigError, match=r"MaskRCNNConvUpsampleHead. Set MODEL.ROI_MASK_HEAD.NAME to Multi"):
        build_model(cfg)


def test_names_in_no_registry_come_with_their_key():
    cfg = load_cfg(FASTER, [*TINY, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFC"])
    with pytest.raises(ConfigError, match=r"'FastRCNNConvFC'.*MODEL.ROI_BOX_HEAD.NAME"):
        build_model(cfg)


def test_detectron2s_heads_with_detectron2s_defaults_are_fine():
    build_model(load_cfg(FASTER, [*TINY, *PLAIN]))
    assert get_cfg().MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS == "SoftmaxCrossEntropyLoss"


def test_lost_labels_are_told(store_maker, tmp_path, caplog):
    register_store("build_warns", store_maker(tmp_path / "store"))
    for heads, count in ((PLAIN, 1), ([], 0)):
        caplog.clear()
        build_model(load_cfg(FASTER, [*TINY, *heads, "DATASETS.TRAIN", "('build_warns',)"]))
        told = [one for one in caplog.messages if "build_warns" in one and "MultiLabelROIHeads" in one]
        assert len(told) == count
