from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from longtail_det2.modeling.backbone import TinyBackbone

from .faster_rcnn_fpn import model

model.backbone = L(TinyBackbone)(
    in_channels=3, stem_channels=16, stage_channels=(32, 64, 128), out_channels=64, norm="BN"
)
model.pixel_mean = [127.0, 127.0, 127.0]
model.pixel_std = [60.0, 60.0, 60.0]

rpn = model.proposal_generator
rpn.in_features = ["p3"]
rpn.head.in_channels = 64
rpn.anchor_generator.sizes = [[16, 32, 64]]
rpn.anchor_generator.aspect_ratios = [1.0]
rpn.anchor_generator.strides = [8]
rpn.batch_size_per_image = 128
rpn.pre_nms_topk = (400, 400)
rpn.post_nms_topk = (100, 100)

heads = model.roi_heads
heads.num_classes = -1  # as many as the training data have
heads.batch_size_per_image = 32
heads.box_in_features = ["p3"]
heads.box_pooler.output_size = 5
heads.box_pooler.scales = (1.0 / 8,)
heads.box_pooler.sampling_ratio = 2
heads.box_head.input_shape = L(ShapeSpec)(channels=64, height=5, width=5)
heads.box_head.fc_dims = [256, 256]
heads.box_predictor.input_shape.channels = 256
heads.box_predictor.cls_agnostic_bbox_reg = True
heads.box_predictor.test_pre_nms_topk = 0
