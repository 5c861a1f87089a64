from ..common.models.mask_rcnn_tiny import model
from .faster_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, optimizer, train

dataloader.train.dataset.names = "shapes_coco_train"
dataloader.train.mapper.mask_format = "polygon"
dataloader.test.dataset.names = "shapes_coco_validation"
dataloader.evaluator.tasks = ["bbox", "segm"]
