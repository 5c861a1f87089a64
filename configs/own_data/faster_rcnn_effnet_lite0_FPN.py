from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidBCELoss

from ..common.data.openimages import dataloader
from ..common.models.faster_rcnn_timm_fpn import model
from ..common.optim import AdamW as optimizer
from ..common.optim import cosine as lr_multiplier
from ..common.train import datasets, train

model.roi_heads.box_predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")

datasets.stores = ["own_train=datasets/own/stores/train", "own_validation=datasets/own/stores/validation"]
dataloader.train.dataset.names = "own_train"
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = (192, 208, 224)
dataloader.train.mapper.augmentations[0].max_size = 320
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 2
dataloader.train.seed = "${train.seed}"
dataloader.test.dataset.names = "own_validation"
dataloader.test.mapper.augmentations[0].short_edge_length = 208
dataloader.test.mapper.augmentations[0].max_size = 320
dataloader.test.num_workers = 2

optimizer.base_lr = 0.001
optimizer.clip_type = "full_model"
optimizer.clip_value = 5.0
train.max_iter = 800
train.checkpointer.period = 400
train.channels_last = True
train.seed = 1
train.output_dir = "./output/faster_rcnn_effnet_lite0_FPN"
