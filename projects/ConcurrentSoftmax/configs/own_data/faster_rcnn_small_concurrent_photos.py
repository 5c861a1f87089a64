from .....configs.own_data.faster_rcnn_small_photos import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.concurrent_softmax import concurrent_softmax as _loss  # without "_" it would be a key

model.roi_heads.box_predictor.classification_loss = _loss
train.output_dir = "./output/faster_rcnn_small_concurrent_photos"
