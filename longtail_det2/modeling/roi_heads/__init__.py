"""RoI heads for regions with several labels."""

from .cascade import MultiLabelCascadeROIHeads
from .classifiers import build_classifier, build_mask_predictor
from .fast_rcnn import MultiLabelFastRCNNOutputLayers
from .mask_head import MultiLabelMaskHead, multi_label_mask_loss
from .roi_heads import BOX_BRANCH_REGISTRY, BoxBranch, MultiLabelROIHeads, with_suffix
from .tsd import TSDBoxBranch, TSDPredictions

__all__ = [
    "BOX_BRANCH_REGISTRY",
    "BoxBranch",
    "MultiLabelCascadeROIHeads",
    "MultiLabelFastRCNNOutputLayers",
    "MultiLabelMaskHead",
    "MultiLabelROIHeads",
    "TSDBoxBranch",
    "TSDPredictions",
    "build_classifier",
    "build_mask_predictor",
    "multi_label_mask_loss",
    "with_suffix",
]
