import copy

from detectron2 import model_zoo

from longtail_det2.modeling.roi_heads import MultiLabelCascadeROIHeads

from .faster_rcnn_fpn import model

# A cascade has one of these for each stage.
_single = {key: model.roi_heads.pop(key) for key in ("box_head", "box_predictor", "proposal_matcher")}
_cascade = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads

model.proposal_generator.post_nms_topk = (2000, 1000)
model.roi_heads.update(
    _target_=MultiLabelCascadeROIHeads,
    box_heads=[copy.deepcopy(_single["box_head"]) for _ in range(3)],
    box_predictors=[copy.deepcopy(_single["box_predictor"]) for _ in range(3)],
    proposal_matchers=_cascade.proposal_matchers,
)
for _ours, _theirs in zip(model.roi_heads.box_predictors, _cascade.box_predictors, strict=True):
    _ours.box2box_transform = _theirs.box2box_transform
    _ours.cls_agnostic_bbox_reg, _ours.num_classes = True, "${...num_classes}"
