from ..common.data import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.optim import steps as lr_multiplier
from ..common.train import datasets, train

# The YAML config says where the numbers are from.
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.update(test_score_thresh=0.0001, test_topk_per_image=300)
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.mapper.mask_format = "polygon"
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator.tasks = ["bbox", "segm"]

lr_multiplier.update(steps=[100176, 137742], warmup_iters=500)
train.max_iter = 150264
train.checkpointer.period = 6261
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
