from .....configs.common.tsd import use_tsd
from .....configs.openimages.cascade_rcnn_R_50_FPN_OpenImages import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

use_tsd(model.roi_heads)
