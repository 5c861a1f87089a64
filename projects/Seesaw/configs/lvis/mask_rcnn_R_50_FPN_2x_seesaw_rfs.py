from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SeesawLoss
from longtail_det2.modeling.roi_heads import build_classifier

from .....configs.lvis.mask_rcnn_R_50_FPN_2x_LVIS import (
    dataloader,
    datasets,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.roi_heads.box_predictor.update(
    classification_loss=L(SeesawLoss)(
        num_classes="${..num_classes}",
        labels="most_specific",  # LVIS has one label per object
    ),
    classifier=L(build_classifier)(name="NormalizedLinear", temperature=20.0),
)
dataloader.train.sampler = "RepeatFactorTrainingSampler"
dataloader.train.sampler_options = {"threshold": 0.001}
