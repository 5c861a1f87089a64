from .mask_rcnn_R_50_FPN_2x_seesaw import dataloader, datasets, lr_multiplier, model, optimizer, train

dataloader.train.sampler = "RepeatFactorTrainingSampler"
dataloader.train.sampler_options = {"threshold": 0.001}
train.output_dir = "./output/mask_rcnn_R_50_FPN_2x_seesaw_rfs"
