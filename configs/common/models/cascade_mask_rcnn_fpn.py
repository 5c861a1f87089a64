from .cascade_rcnn_fpn import model
from .mask_rcnn_fpn import model as mask_rcnn

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = mask_rcnn.roi_heads[key]
