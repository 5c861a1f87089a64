from ..common.data import dataloader
from ..common.models.faster_rcnn_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.optim import cosine as lr_multiplier
from ..common.train import datasets, train

dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations[0].update(short_edge_length=(128,), max_size=128)
dataloader.train.total_batch_size = 8
dataloader.train.aspect_ratio_grouping = False  # all images are square
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.seed = "${train.seed}"
dataloader.test.dataset.names = "shapes_validation"
dataloader.test.mapper.augmentations[0].update(short_edge_length=128, max_size=128)

optimizer.update(clip_type="full_model", clip_value=5.0)
train.update(max_iter=1500, channels_last=True, seed=1)
train.checkpointer.period = 500
