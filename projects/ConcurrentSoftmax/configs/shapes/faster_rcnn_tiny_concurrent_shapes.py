from detectron2.config import LazyCall as L

from longtail_det2.data.statistics import cooccurrence_rates_of
from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss

from .....configs.shapes.faster_rcnn_tiny_softmax_shapes import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.roi_heads.box_predictor.classification_loss = L(ConcurrentSoftmaxLoss)(
    num_classes="${..num_classes}",
    rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}"),
)
