from .faster_rcnn_R_50_FPN_OpenImages import dataloader, datasets, lr_multiplier, model, optimizer, train

dataloader.train.sampler = "ClassAwareTrainingSampler"
