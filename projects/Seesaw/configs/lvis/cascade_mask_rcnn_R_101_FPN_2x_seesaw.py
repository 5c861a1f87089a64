import copy

from .....configs.lvis.cascade_mask_rcnn_R_101_FPN_2x_LVIS import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.seesaw import normalized_linear as _classifier  # without "_" it would be a key
from ..common.seesaw import seesaw as _seesaw

for predictor in model.roi_heads.box_predictors:  # each stage counts for itself
    predictor.classification_loss = copy.deepcopy(_seesaw)
    predictor.classifier = copy.deepcopy(_classifier)
train.output_dir = "./output/cascade_mask_rcnn_R_101_FPN_2x_seesaw"
