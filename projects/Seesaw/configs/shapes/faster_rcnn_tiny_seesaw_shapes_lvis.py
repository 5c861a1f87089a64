from .....configs.shapes.faster_rcnn_tiny_softmax_shapes_lvis import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.seesaw import normalized_linear as _classifier  # without "_" it would be a key
from ..common.seesaw import seesaw as _seesaw

model.roi_heads.box_predictor.classification_loss = _seesaw
model.roi_heads.box_predictor.classifier = _classifier
train.output_dir = "./output/faster_rcnn_tiny_seesaw_shapes_lvis"
