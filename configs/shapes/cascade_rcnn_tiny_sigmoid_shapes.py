from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidBCELoss

from .cascade_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, model, optimizer, train

for _predictor in model.roi_heads.box_predictors:  # a loss for each stage; without "_" it would be a key
    _predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")
train.output_dir = "./output/cascade_rcnn_tiny_sigmoid_shapes"
