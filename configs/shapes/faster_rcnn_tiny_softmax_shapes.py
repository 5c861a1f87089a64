from ..common.data.shapes import dataloader
from ..common.models.faster_rcnn_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.optim import cosine as lr_multiplier
from ..common.train import datasets, train

optimizer.clip_type = "full_model"
optimizer.clip_value = 5.0
train.max_iter = 1500
train.checkpointer.period = 500
train.channels_last = True
train.seed = 1
train.output_dir = "./output/faster_rcnn_tiny_softmax_shapes"
