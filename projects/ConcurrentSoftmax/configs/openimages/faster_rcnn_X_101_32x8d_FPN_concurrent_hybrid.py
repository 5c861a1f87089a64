from .faster_rcnn_X_101_32x8d_FPN_concurrent import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataloader.train.sampler = "PhasedTrainingSampler"
dataloader.train.phases = [
    ["UniformTrainingSampler", 217880],
    ["SoftBalanceTrainingSampler", 108940, {"lambda_": 0.7}],
]
train.output_dir = "./output/faster_rcnn_X_101_32x8d_FPN_concurrent_hybrid"
