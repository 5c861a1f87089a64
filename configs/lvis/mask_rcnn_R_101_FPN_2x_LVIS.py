from .mask_rcnn_R_50_FPN_2x_LVIS import dataloader, datasets, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "./output/mask_rcnn_R_101_FPN_2x_LVIS"
