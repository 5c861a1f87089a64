from ..common.models.cascade_mask_rcnn_fpn import model
from .mask_rcnn_R_101_FPN_2x_LVIS import dataloader, datasets, lr_multiplier, optimizer, train

model.backbone.bottom_up.stages.depth = 101
model.roi_heads.num_classes = 1203
for predictor in model.roi_heads.box_predictors:
    predictor.test_score_thresh = 0.0001
    predictor.test_topk_per_image = 300

train.output_dir = "./output/cascade_mask_rcnn_R_101_FPN_2x_LVIS"
