from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler

from longtail_det2.modeling.roi_heads import MultiLabelMaskHead

from .faster_rcnn_fpn import model

heads = model.roi_heads
heads.mask_in_features = "${.box_in_features}"
heads.mask_pooler = L(ROIPooler)(
    output_size=14, scales="${..box_pooler.scales}", sampling_ratio=0, pooler_type="ROIAlignV2"
)
heads.mask_head = L(MultiLabelMaskHead)(
    input_shape=L(ShapeSpec)(channels=256, height=14, width=14),
    num_classes="${..num_classes}",
    conv_dims=[256, 256, 256, 256, 256],  # the last one is the deconvolution's
)
