from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SoftmaxCrossEntropyLoss

from .retinanet_tiny_focal_shapes import dataloader, datasets, lr_multiplier, model, optimizer, train

model.head.classification_loss = L(SoftmaxCrossEntropyLoss)(num_classes="${..num_classes}")
train.output_dir = "./output/retinanet_tiny_softmax_shapes"
