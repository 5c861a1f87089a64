from detectron2 import model_zoo

from longtail_det2.modeling.roi_heads import MultiLabelMaskHead

from .faster_rcnn_fpn import model

_detectron2 = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.roi_heads
for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = _detectron2[key]
model.roi_heads.mask_head._target_ = MultiLabelMaskHead
