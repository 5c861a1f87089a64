from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidBCELoss

from ..common.data import dataloader
from ..common.models.faster_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.optim import steps as lr_multiplier
from ..common.train import datasets, train

model.roi_heads.box_predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")

datasets.stores = ["own_train=datasets/own/stores/train", "own_validation=datasets/own/stores/validation"]
dataloader.train.dataset.names = "own_train"
dataloader.train.total_batch_size = 8
dataloader.test.dataset.names = "own_validation"

optimizer.update(base_lr=0.005, clip_type="full_model", clip_value=35.0)
lr_multiplier.update(steps=[3500, 4500], warmup_iters=200, warmup_factor=0.01)
train.max_iter = 5000
train.checkpointer.period = 1000
train.init_checkpoint = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
train.reset_weights = ["roi_heads.box_predictor"]
