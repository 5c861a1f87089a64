from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import FrozenGuidedLossScaling, SigmoidBCELoss

from .....configs.common.models.fcos import model
from .retinanet_R_50_FPN_sampling_free import dataloader, datasets, lr_multiplier, optimizer, train

model.num_classes = 80
model.head.classification_loss = L(SigmoidBCELoss)(num_classes="${..num_classes}")
model.head.prior_prob = 1e-4
model.update(
    loss_normalizer="foreground",
    guided_loss=L(FrozenGuidedLossScaling)(num_losses=3, warmup=100),
    adaptive_threshold="per_class",
    test_score_thresh=0.0,
)
lr_multiplier.warmup_method = "constant"
