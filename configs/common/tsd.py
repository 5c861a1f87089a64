import copy

from detectron2.config import LazyCall as L

from longtail_det2.modeling.roi_heads import TSDBoxBranch


def use_tsd(roi_heads, **options):
    """Give RoI heads TSD's branch, or each stage of a cascade one; its heads are made like the box head."""
    if "box_head" in roi_heads:
        head, predictor = roi_heads.box_head, roi_heads.box_predictor
        roi_heads.box_branch = _branch(head, predictor, "${...num_classes}", options)
    else:
        stages = zip(roi_heads.box_heads, roi_heads.box_predictors, strict=True)
        roi_heads.box_branches = [_branch(*parts, "${....num_classes}", options) for parts in stages]
    for key in [key for key in roi_heads if key.startswith("mask_")]:
        roi_heads[key] = roi_heads.pop(key)  # made last, as with YAML: the same seed, the same weights


def _branch(head, predictor, num_classes, options):
    branch = L(TSDBoxBranch)(
        input_shape=copy.deepcopy(head.input_shape),
        regression_head=copy.deepcopy(head),
        sibling_head=copy.deepcopy(head),
        sibling_predictor=copy.deepcopy(predictor),
        **options,
    )
    branch.sibling_predictor.num_classes = num_classes
    return branch
