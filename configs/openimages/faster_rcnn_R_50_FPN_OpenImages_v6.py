from .faster_rcnn_R_50_FPN_OpenImages import dataloader, datasets, lr_multiplier, model, optimizer, train

model.roi_heads.num_classes = 601
dataloader.train.dataset.names = "openimages_v6_train"
dataloader.test.dataset.names = "openimages_v6_validation"
