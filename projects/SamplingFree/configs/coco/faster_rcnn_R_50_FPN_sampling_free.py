from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import GuidedLossScaling
from longtail_det2.modeling.proposal_generator import NormalizedRPN

from .....configs.common.models.faster_rcnn_fpn import model
from .retinanet_R_50_FPN_sampling_free import dataloader, datasets, lr_multiplier, optimizer, train

# The YAML config says where the numbers are from.
model.proposal_generator.update(
    _target_=NormalizedRPN,
    batch_size_per_image=1_000_000,  # more than there are
    positive_fraction=1.0,
    loss_normalizer="foreground",
    guided_loss=L(GuidedLossScaling)(scale=1.0),
    prior_prob=2e-4,
    smooth_l1_beta=0.111111,
    loss_weight=dict(loss_rpn_cls=1.0, loss_rpn_loc=0.125),
)
model.roi_heads.update(num_classes=80, batch_size_per_image=1_000_000, positive_fraction=1.0)
model.roi_heads.box_predictor.update(
    loss_normalizer="foreground",
    guided_loss=L(GuidedLossScaling)(scale=2.0),
    smooth_l1_beta=1.0,
    loss_weight=dict(loss_box_reg=0.25),
    test_score_thresh=0.0001,
)
optimizer.base_lr = 0.02
