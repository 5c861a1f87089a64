from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import ConcurrentSoftmaxLoss
from longtail_det2.modeling.losses.rates_of_run import RatesOfRun

# For a predictor's classification_loss. Rates: counted in the training data; or the path of a file of them.
concurrent_softmax = L(ConcurrentSoftmaxLoss)(
    num_classes="${..num_classes}",
    rates=L(RatesOfRun)(datasets="${dataloader.train.dataset.names}", path="", direction="given_row"),
    train="concurrent",
    test="concurrent",
)
