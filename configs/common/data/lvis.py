from .openimages import dataloader

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (640, 672, 704, 736, 768, 800)
dataloader.train.mapper.augmentations[0].max_size = 1333
dataloader.train.mapper.mask_format = "polygon"
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 800
dataloader.test.mapper.augmentations[0].max_size = 1333
dataloader.evaluator.tasks = ["bbox", "segm"]
