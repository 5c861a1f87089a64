from ..common.data import dataloader
from ..common.models.faster_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.optim import steps as lr_multiplier
from ..common.train import datasets, train

# The YAML config says where the numbers are from.
model.roi_heads.num_classes = 500
dataloader.train.dataset.names = "openimages_challenge_2019_train"
dataloader.train.mapper.augmentations[0].update(short_edge_length=(800,), max_size=1024)
dataloader.train.total_batch_size = 64
dataloader.test.dataset.names = "openimages_challenge_2019_validation"
dataloader.test.mapper.augmentations[0].max_size = 1024

optimizer.update(base_lr=0.08, clip_type="full_model", clip_value=35.0)
lr_multiplier.update(steps=[217880, 299585], warmup_iters=26000, warmup_factor=1 / 64)
train.max_iter = 326820
train.checkpointer.period = 27235
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
