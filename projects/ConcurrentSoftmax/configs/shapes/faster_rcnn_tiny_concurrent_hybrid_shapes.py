from .faster_rcnn_tiny_concurrent_shapes import dataloader, datasets, lr_multiplier, model, optimizer, train

dataloader.train.sampler = "PhasedTrainingSampler"
dataloader.train.phases = [
    ["UniformTrainingSampler", 1000],
    ["SoftBalanceTrainingSampler", 500, {"lambda_": 0.7}],
]
train.output_dir = "./output/faster_rcnn_tiny_concurrent_hybrid_shapes"
