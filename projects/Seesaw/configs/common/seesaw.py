from detectron2.config import LazyCall as L

from longtail_det2.data.statistics import cooccurrence_rates_of
from longtail_det2.modeling.losses import ConcurrentFocalSeesawLoss, ConcurrentSeesawLoss, SeesawLoss
from longtail_det2.modeling.roi_heads import build_classifier, build_mask_predictor

# For a predictor's classification_loss, classifier, and for a mask head's predictor.
seesaw = L(SeesawLoss)(
    num_classes="${..num_classes}",
    p=0.8,
    q=2.0,
    objectness=True,
    labels="most_specific",  # LVIS has one label per object; so nothing waits for the device
)
# For several labels per object, such as Open Images.
multi_label_seesaw = L(ConcurrentSeesawLoss)(
    num_classes="${..num_classes}",
    p=0.8,
    q=2.0,
    objectness=True,
    labels="all",
    rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}"),
)
# The same for dense heads.
dense_seesaw = L(ConcurrentFocalSeesawLoss)(
    num_classes="${..num_classes}",
    p=0.8,
    q=2.0,
    labels="all",
    rates=L(cooccurrence_rates_of)(names="${dataloader.train.dataset.names}"),
    focal_alpha=0.25,
    focal_gamma=2.0,
)
normalized_linear = L(build_classifier)(name="NormalizedLinear", temperature=20.0)
normalized_mask = L(build_mask_predictor)(name="NormalizedConv2d", temperature=20.0)
