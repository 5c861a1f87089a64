"""ROI heads whose regions carry several labels."""

from .fast_rcnn import MultiLabelFastRCNNOutputLayers
from .roi_heads import MultiLabelROIHeads

__all__ = ["MultiLabelFastRCNNOutputLayers", "MultiLabelROIHeads"]
