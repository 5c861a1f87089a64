from ..common.data.openimages import dataloader
from ..common.models.faster_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.optim import openimages_12_epochs as lr_multiplier
from ..common.train import datasets, train

optimizer.base_lr = 0.08
optimizer.clip_type = "full_model"
optimizer.clip_value = 35.0
train.max_iter = 326820
train.checkpointer.period = 27235
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
