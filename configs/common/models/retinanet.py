from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from longtail_det2.modeling.losses import SigmoidFocalLoss
from longtail_det2.modeling.meta_arch import MultiLabelRetinaNet, MultiLabelRetinaNetHead

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up.freeze_at = 2
model.backbone.bottom_up.stages.norm = "${..stem.norm}"  # one norm for all
_alpha, _gamma = model.pop("focal_loss_alpha"), model.pop("focal_loss_gamma")
model.head.update(
    _target_=MultiLabelRetinaNetHead,
    classification_loss=L(SigmoidFocalLoss)(num_classes="${..num_classes}", alpha=_alpha, gamma=_gamma),
    norm="",
)
model.update(
    _target_=MultiLabelRetinaNet,
    num_classes=-1,  # as many as the training data have
    test_score_thresh=0.01,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
)
