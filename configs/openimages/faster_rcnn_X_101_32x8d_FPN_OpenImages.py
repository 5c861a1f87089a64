from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from .faster_rcnn_R_101_FPN_OpenImages import dataloader, datasets, lr_multiplier, model, optimizer, train

# 32 groups of width 8 in res2, twice as wide in each later stage.
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[stride] + [1] * (num_blocks - 1),
        in_channels=in_channels,
        bottleneck_channels=out_channels,
        out_channels=out_channels,
        num_groups=32,
        norm="${...stem.norm}",
        stride_in_1x1=False,  # as the ImageNet weights were trained
    )
    for num_blocks, stride, in_channels, out_channels in (
        (3, 1, 64, 256),
        (4, 2, 256, 512),
        (23, 2, 512, 1024),
        (3, 2, 1024, 2048),
    )
]
model.pixel_std = [57.375, 57.120, 58.395]  # these ImageNet weights were trained on scaled pixels
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
