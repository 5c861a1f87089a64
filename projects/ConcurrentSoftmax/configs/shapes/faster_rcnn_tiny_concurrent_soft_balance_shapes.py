from .faster_rcnn_tiny_concurrent_shapes import dataloader, datasets, lr_multiplier, model, optimizer, train

dataloader.train.sampler = "SoftBalanceTrainingSampler"
dataloader.train.sampler_options = {"lambda_": 0.7}
train.output_dir = "./output/faster_rcnn_tiny_concurrent_soft_balance_shapes"
