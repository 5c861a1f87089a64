from ..common.models.retinanet_tiny import model
from .faster_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, optimizer, train

train.output_dir = "./output/retinanet_tiny_focal_shapes"
