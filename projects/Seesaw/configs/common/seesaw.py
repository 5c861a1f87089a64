from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SeesawLoss
from longtail_det2.modeling.losses.rates_of_run import RatesOfRun
from longtail_det2.modeling.roi_heads import classifier_named, mask_predictor_named

# For a predictor's classification_loss, classifier, and for a mask head's predictor.
seesaw = L(SeesawLoss)(
    num_classes="${..num_classes}",
    p=0.8,
    q=2.0,
    objectness=True,
    labels="most_specific",  # LVIS has one label an object; so nothing waits for the device
    reduction="regions",
)
# For several labels an object, such as Open Images.
multi_label_seesaw = L(SeesawLoss)(
    num_classes="${..num_classes}",
    p=0.8,
    q=2.0,
    objectness=True,
    labels="all",
    reduction="regions",
    scores="concurrent",
    rates=L(RatesOfRun)(datasets="${dataloader.train.dataset.names}", path=""),
)
normalized_linear = L(classifier_named)(name="NormalizedLinear", temperature=20.0)
normalized_mask = L(mask_predictor_named)(name="NormalizedConv2d", temperature=20.0)
