from .....configs.openimages.faster_rcnn_R_50_FPN_OpenImages import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.seesaw import multi_label_seesaw as _seesaw  # without "_" it would be a key
from ..common.seesaw import normalized_linear as _classifier

model.roi_heads.box_predictor.classification_loss = _seesaw
model.roi_heads.box_predictor.classifier = _classifier
train.output_dir = "./output/faster_rcnn_R_50_FPN_seesaw"
