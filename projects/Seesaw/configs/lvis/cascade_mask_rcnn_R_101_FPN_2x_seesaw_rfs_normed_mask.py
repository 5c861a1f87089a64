from ..common.seesaw import normalized_mask as _predictor
from .cascade_mask_rcnn_R_101_FPN_2x_seesaw_rfs import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.roi_heads.mask_head.predictor = _predictor
train.output_dir = "./output/cascade_mask_rcnn_R_101_FPN_2x_seesaw_rfs_normed_mask"
