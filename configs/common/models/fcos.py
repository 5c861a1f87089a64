from longtail_det2.modeling.meta_arch import MultiLabelFCOS, MultiLabelFCOSHead

from .retinanet import model

model._target_ = MultiLabelFCOS
for key in ("anchor_generator", "box2box_transform", "anchor_matcher", "input_format"):  # FCOS has its own
    model.pop(key)
model.head._target_ = MultiLabelFCOSHead
model.head.pop("num_anchors")
model.head.norm = "GN"

# p6 and p7 of p5 instead of res5
model.backbone.top_block.in_feature = "p5"
model.backbone.top_block.in_channels = 256

model.test_score_thresh = 0.05  # of sqrt(score x centerness)
model.test_nms_thresh = 0.6
