from .openimages import dataloader

dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (128,)
dataloader.train.mapper.augmentations[0].max_size = 128
dataloader.train.total_batch_size = 8
dataloader.train.aspect_ratio_grouping = False  # all images are square
dataloader.train.num_workers = 0
dataloader.train.seed = "${train.seed}"

dataloader.test.dataset.names = "shapes_validation"
dataloader.test.mapper.augmentations[0].short_edge_length = 128
dataloader.test.mapper.augmentations[0].max_size = 128
dataloader.test.num_workers = 0
