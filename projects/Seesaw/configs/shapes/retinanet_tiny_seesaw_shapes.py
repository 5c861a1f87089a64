from .....configs.shapes.retinanet_tiny_softmax_shapes import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)
from ..common.seesaw import dense_seesaw as _seesaw  # without "_" it would be a key

model.head.classification_loss = _seesaw
train.output_dir = "./output/retinanet_tiny_seesaw_shapes"
