from .....configs.lvis.mask_rcnn_R_50_FPN_2x_LVIS import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.seesaw import normalized_linear as _classifier  # without "_" it would be a key
from ..common.seesaw import seesaw as _seesaw

heads = model.roi_heads
heads.box_predictor.classification_loss = _seesaw
heads.box_predictor.classifier = _classifier
train.output_dir = "./output/mask_rcnn_R_50_FPN_2x_seesaw"
