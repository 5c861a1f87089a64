from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidBCELoss

from ..common.data.openimages import dataloader
from ..common.models.faster_rcnn_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.optim import cosine as lr_multiplier
from ..common.train import datasets, train

model.backbone.stem_channels = 32
model.backbone.stage_channels = (64, 128, 256)
model.backbone.out_channels = 128

rpn = model.proposal_generator
rpn.head.in_channels = 128
rpn.head.num_anchors = 15
rpn.anchor_generator.sizes = [[16, 32, 64, 128, 256]]
rpn.anchor_generator.aspect_ratios = [0.5, 1.0, 2.0]
rpn.batch_size_per_image = 256
rpn.pre_nms_topk = (1000, 1000)
rpn.post_nms_topk = (300, 300)

heads = model.roi_heads
heads.batch_size_per_image = 128
heads.box_pooler.output_size = 7
heads.box_head.input_shape.channels = 128
heads.box_head.input_shape.height = 7
heads.box_head.input_shape.width = 7
heads.box_head.fc_dims = [512, 512]
heads.box_predictor.input_shape.channels = 512
heads.box_predictor.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")

datasets.stores = ["own_train=datasets/own/stores/train", "own_validation=datasets/own/stores/validation"]
dataloader.train.dataset.names = "own_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (320,)
dataloader.train.mapper.augmentations[0].max_size = 416
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2
dataloader.train.seed = "${train.seed}"
dataloader.test.dataset.names = "own_validation"
dataloader.test.mapper.augmentations[0].short_edge_length = 320
dataloader.test.mapper.augmentations[0].max_size = 416
dataloader.test.num_workers = 2

optimizer.base_lr = 0.001
optimizer.clip_type = "full_model"
optimizer.clip_value = 5.0
train.max_iter = 800
train.checkpointer.period = 400
train.channels_last = True
train.seed = 1
train.output_dir = "./output/faster_rcnn_small_photos"
