from ..common.models.retinanet import model
from .faster_rcnn_R_50_FPN_OpenImages import dataloader, datasets, lr_multiplier, optimizer, train

model.num_classes = 500
optimizer.base_lr = 0.04
