from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

from longtail_det2.modeling.losses import SigmoidFocalLoss
from longtail_det2.modeling.meta_arch import MultiLabelRetinaNet, MultiLabelRetinaNetHead

from .faster_rcnn_fpn import model as faster_rcnn

backbone = faster_rcnn.backbone
backbone.bottom_up.out_features = ["res3", "res4", "res5"]
backbone.top_block = L(LastLevelP6P7)(in_channels=2048, out_channels="${..out_channels}")

model = L(MultiLabelRetinaNet)(
    backbone=backbone,
    head=L(MultiLabelRetinaNetHead)(
        input_shape=[L(ShapeSpec)(channels=256) for _ in range(5)],  # of each level
        num_classes="${..num_classes}",
        classification_loss=L(SigmoidFocalLoss)(num_classes="${..num_classes}", alpha=0.25, gamma=2.0),
        num_anchors=9,
        conv_dims=[256, 256, 256, 256],
        norm="",
        prior_prob=0.01,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    num_classes=500,
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    test_score_thresh=0.01,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
    pixel_mean=[103.530, 116.280, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
