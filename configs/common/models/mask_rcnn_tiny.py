from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler

from longtail_det2.modeling.roi_heads import MultiLabelMaskHead

from .faster_rcnn_tiny import model

heads = model.roi_heads
heads.mask_in_features = "${.box_in_features}"
heads.mask_pooler = L(ROIPooler)(
    output_size=10, scales="${..box_pooler.scales}", sampling_ratio=2, pooler_type="ROIAlignV2"
)
heads.mask_head = L(MultiLabelMaskHead)(
    input_shape=L(ShapeSpec)(channels=64, height=10, width=10),
    num_classes="${..num_classes}",
    conv_dims=[64, 64, 64],  # the last one is the deconvolution's
)
