from ..common.models.fcos_tiny import model
from .faster_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, optimizer, train

train.output_dir = "./output/fcos_tiny_focal_shapes"
