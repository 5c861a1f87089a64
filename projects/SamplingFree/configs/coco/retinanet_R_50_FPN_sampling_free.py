from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import GuidedLossScaling, SigmoidBCELoss

from .....configs.common.data import dataloader
from .....configs.common.models.retinanet import model
from .....configs.common.optim import SGD as optimizer
from .....configs.common.optim import steps as lr_multiplier
from .....configs.common.train import datasets, train

# The YAML config says where the numbers are from.
model.num_classes = 80
model.head.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")
model.head.prior_prob = 1e-5
model.update(
    loss_normalizer="foreground",
    guided_loss=L(GuidedLossScaling)(scale=1.0),
    box_loss_weight=0.25,
    smooth_l1_beta=0.11,
    adaptive_threshold="per_class",
    test_score_thresh=0.0,
)
dataloader.train.dataset.names = "coco_2017_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
dataloader.test.dataset.names = "coco_2017_val"

optimizer.update(base_lr=0.01, bias_lr_factor=2.0, weight_decay_bias=0.0)
lr_multiplier.update(warmup_iters=500, warmup_factor=0.333333)
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
