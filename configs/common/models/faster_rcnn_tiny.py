from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from longtail_det2.modeling.backbone import TinyBackbone

from .faster_rcnn_fpn import model

model.backbone = L(TinyBackbone)(
    in_channels=3, stem_channels=16, stage_channels=(32, 64, 128), out_channels=64, norm="BN"
)
model.pixel_mean = [127.0, 127.0, 127.0]
model.pixel_std = [60.0, 60.0, 60.0]

_rpn = model.proposal_generator
_rpn.in_features = ["p3"]
_rpn.head.in_channels = 64
_rpn.anchor_generator.update(sizes=[[16, 32, 64]], aspect_ratios=[1.0], strides=[8])
_rpn.batch_size_per_image = 128
_rpn.pre_nms_topk = (400, 400)
_rpn.post_nms_topk = (100, 100)

_heads = model.roi_heads
_heads.batch_size_per_image = 32
_heads.box_in_features = ["p3"]
_heads.box_pooler.update(output_size=5, scales=(1.0 / 8,), sampling_ratio=2)
_heads.box_head.update(input_shape=L(ShapeSpec)(channels=64, height=5, width=5), fc_dims=[256, 256])
_heads.box_predictor.update(
    input_shape=L(ShapeSpec)(channels=256), cls_agnostic_bbox_reg=True, test_pre_nms_topk=0
)
