from detectron2.config import LazyCall as L

from longtail_det2.data.statistics import cooccurrence_rates_of
from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss

# For a predictor's classification_loss.
concurrent_softmax = L(ConcurrentSoftmaxLoss)(
    num_classes="${..num_classes}",
    rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}"),
    direction="given_row",
    train="concurrent",
    test="concurrent",
)
