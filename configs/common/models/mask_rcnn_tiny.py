from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from .faster_rcnn_tiny import model
from .mask_rcnn_fpn import model as _mask_rcnn

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = _mask_rcnn.roi_heads[key]
model.roi_heads.mask_in_features = ["p3"]
model.roi_heads.mask_pooler.update(output_size=10, scales=(1.0 / 8,), sampling_ratio=2)
model.roi_heads.mask_head.update(
    input_shape=L(ShapeSpec)(channels=64, height=10, width=10),
    conv_dims=[64, 64, 64],  # the last one is the deconvolution's
)
