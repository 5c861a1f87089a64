from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from .cascade_rcnn_fpn import model as cascade
from .faster_rcnn_tiny import model

# The heads of the cascade on what the tiny two-stage detector has.
tiny, heads = model.roi_heads, cascade.roi_heads
for key in ("num_classes", "batch_size_per_image", "box_in_features", "box_pooler"):
    heads[key] = tiny[key]
for box_head, predictor in zip(heads.box_heads, heads.box_predictors, strict=True):
    box_head.input_shape = L(ShapeSpec)(channels=64, height=5, width=5)
    box_head.fc_dims = [256, 256]
    predictor.input_shape.channels = 256
    predictor.test_pre_nms_topk = 0
model.roi_heads = heads
