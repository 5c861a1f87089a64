import pytest
import torch
from detectron2.structures import Boxes, Instances

from longtail_det2.config import get_cfg


@pytest.fixture
def tiny_cfg():
    """Faster R-CNN with the tiny backbone and four classes, without any data set."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_tiny_backbone"
    cfg.MODEL.TINY_BACKBONE.STEM_CHANNELS = 4
    cfg.MODEL.TINY_BACKBONE.STAGE_CHANNELS = (4, 8, 8)
    cfg.MODEL.TINY_BACKBONE.OUT_CHANNELS = 8
    cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    cfg.MODEL.ROI_HEADS.NAME = "MultiLabelROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    return cfg


@pytest.fixture
def batch():
    """Two images of four classes: one with two objects (one of them multi-label), one without any."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 255, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(2)]
    full = Instances((64, 64))
    full.gt_boxes = Boxes(torch.tensor([[4.0, 4, 28, 30], [30, 20, 60, 60]]))
    full.gt_classes = torch.tensor([0, 2])
    full.gt_labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, -1]], dtype=torch.int8)
    empty = Instances((64, 64))
    empty.gt_boxes = Boxes(torch.zeros(0, 4))
    empty.gt_classes = torch.zeros(0, dtype=torch.int64)
    empty.gt_labels = torch.zeros(0, 4, dtype=torch.int8)
    return [
        {"image": image, "instances": instances, "height": 64, "width": 64}
        for image, instances in zip(images, [full, empty], strict=True)
    ]
