from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from longtail_det2.modeling.backbone import TimmBackbone

from .faster_rcnn_fpn import model

model.backbone.bottom_up = L(TimmBackbone)(
    name="tf_efficientnet_lite0",
    levels=["stride8", "stride16", "stride32"],
    freeze_stride=32,
    freeze_norm=True,
    weights="",  # a file, .pth or .safetensors
)
model.backbone.in_features = "${.bottom_up.levels}"
model.backbone.out_channels = 64
model.pixel_mean = [127.0, 127.0, 127.0]
model.pixel_std = [128.0, 128.0, 128.0]
model.input_format = "RGB"

rpn = model.proposal_generator
rpn.in_features = ["p3", "p4", "p5", "p6"]
rpn.head.in_channels = 64
rpn.anchor_generator.sizes = [[24], [48], [96], [160]]
rpn.anchor_generator.strides = [8, 16, 32, 64]
rpn.pre_nms_topk = (400, 400)
rpn.post_nms_topk = (200, 200)

heads = model.roi_heads
heads.num_classes = -1  # as many as the training data have
heads.batch_size_per_image = 32
heads.box_in_features = ["p3", "p4", "p5"]
heads.box_pooler.scales = (1.0 / 8, 1.0 / 16, 1.0 / 32)
heads.box_pooler.sampling_ratio = 2
heads.box_head.input_shape = L(ShapeSpec)(channels=64, height=7, width=7)
heads.box_head.fc_dims = [256, 256]
heads.box_predictor.input_shape.channels = 256
heads.box_predictor.cls_agnostic_bbox_reg = True
heads.box_predictor.test_pre_nms_topk = 0
