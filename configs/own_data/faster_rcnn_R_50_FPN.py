from detectron2.config import LazyCall as L

from longtail_det2.engine.solver import build_lr_multiplier
from longtail_det2.modeling.losses import SigmoidBCELoss

from ..common.data.openimages import dataloader
from ..common.models.faster_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.train import datasets, train

model.roi_heads.num_classes = -1
model.roi_heads.box_predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")

datasets.stores = ["own_train=datasets/own/stores/train", "own_validation=datasets/own/stores/validation"]
dataloader.train.dataset.names = "own_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (640, 672, 704, 736, 768, 800)
dataloader.train.mapper.augmentations[0].max_size = 1333
dataloader.train.total_batch_size = 8
dataloader.test.dataset.names = "own_validation"
dataloader.test.mapper.augmentations[0].short_edge_length = 800
dataloader.test.mapper.augmentations[0].max_size = 1333

optimizer.base_lr = 0.005
optimizer.clip_type = "full_model"
optimizer.clip_value = 35.0
lr_multiplier = L(build_lr_multiplier)(
    name="WarmupMultiStepLR",
    max_iter="${train.max_iter}",
    steps=[3500, 4500],
    gamma=0.1,
    warmup_iters=200,
    warmup_factor=0.01,
)
train.max_iter = 5000
train.checkpointer.period = 1000
train.init_checkpoint = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
train.reset_weights = ["roi_heads.box_predictor"]
train.output_dir = "./output/faster_rcnn_R_50_FPN"
