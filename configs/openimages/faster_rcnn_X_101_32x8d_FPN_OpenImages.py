from .faster_rcnn_R_101_FPN_OpenImages import dataloader, datasets, lr_multiplier, model, optimizer, train

stages = model.backbone.bottom_up.stages
stages.stride_in_1x1 = False
stages.num_groups = 32
stages.bottleneck_channels = 256
model.pixel_std = [57.375, 57.120, 58.395]
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
