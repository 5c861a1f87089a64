from ..common.seesaw import normalized_mask as _predictor
from .mask_rcnn_R_50_FPN_2x_seesaw_rfs import dataloader, datasets, lr_multiplier, model, optimizer, train

model.roi_heads.mask_head.predictor = _predictor
train.output_dir = "./output/mask_rcnn_R_50_FPN_2x_seesaw_rfs_normed_mask"
