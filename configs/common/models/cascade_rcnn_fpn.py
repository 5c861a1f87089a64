from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss
from longtail_det2.modeling.roi_heads import MultiLabelCascadeROIHeads, MultiLabelFastRCNNOutputLayers

from .faster_rcnn_fpn import model

for key in ("box_head", "box_predictor", "proposal_matcher"):  # a cascade has one for each stage
    model.roi_heads.pop(key)

model.proposal_generator.post_nms_topk = (2000, 1000)
model.roi_heads.update(
    _target_=MultiLabelCascadeROIHeads,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels=256, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(MultiLabelFastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            classification_loss=L(SoftmaxCrossEntropyLoss)(num_classes="${..num_classes}"),
            num_classes="${...num_classes}",
            box2box_transform=L(Box2BoxTransform)(weights=(xy, xy, wh, wh)),
            cls_agnostic_bbox_reg=True,
            test_score_thresh=0.01,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
            test_pre_nms_topk=10000,
        )
        for xy, wh in ((10, 5), (20, 10), (30, 15))
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[overlap], labels=[0, 1], allow_low_quality_matches=False)
        for overlap in (0.5, 0.6, 0.7)
    ],
)
