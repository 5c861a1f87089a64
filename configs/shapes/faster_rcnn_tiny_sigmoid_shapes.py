from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidBCELoss

from .faster_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")
