"""ROI heads whose regions carry several labels."""

from .cascade import MultiLabelCascadeROIHeads
from .fast_rcnn import MultiLabelFastRCNNOutputLayers
from .roi_heads import MultiLabelROIHeads

__all__ = ["MultiLabelCascadeROIHeads", "MultiLabelFastRCNNOutputLayers", "MultiLabelROIHeads"]
