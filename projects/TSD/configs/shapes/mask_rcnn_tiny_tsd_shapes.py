from .....configs.common.tsd import use_tsd
from .....configs.shapes.mask_rcnn_tiny_softmax_shapes import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

use_tsd(model.roi_heads, sampling_ratio=2)
