from ..common.models.cascade_rcnn_fpn import model
from .faster_rcnn_R_50_FPN_OpenImages import dataloader, datasets, lr_multiplier, optimizer, train

model.roi_heads.num_classes = 500
