from ..common.data.lvis import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.optim import lvis_24_epochs as lr_multiplier
from ..common.train import datasets, train

heads = model.roi_heads
heads.num_classes = 1203
heads.box_predictor.test_score_thresh = 0.0001
heads.box_predictor.test_topk_per_image = 300

optimizer.base_lr = 0.02
train.max_iter = 150264
train.checkpointer.period = 6261
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/mask_rcnn_R_50_FPN_2x_LVIS"
