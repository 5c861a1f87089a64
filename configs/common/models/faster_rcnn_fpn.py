from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss
from longtail_det2.modeling.roi_heads import MultiLabelFastRCNNOutputLayers, MultiLabelROIHeads

# Detectron2's Mask R-CNN without masks, with multi-label heads.
model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.backbone.bottom_up.stages.norm = "${..stem.norm}"  # one norm for all

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(key)
model.roi_heads.update(_target_=MultiLabelROIHeads, num_classes=-1)  # as many as the training data have
model.roi_heads.box_predictor.update(
    _target_=MultiLabelFastRCNNOutputLayers,
    classification_loss=L(SoftmaxCrossEntropyLoss)(num_classes="${..num_classes}"),
    cls_agnostic_bbox_reg=False,
    test_score_thresh=0.01,
    test_nms_thresh=0.5,
    test_topk_per_image=100,
    test_pre_nms_topk=10000,
)
