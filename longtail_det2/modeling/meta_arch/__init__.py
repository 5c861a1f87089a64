"""Dense detectors whose anchors carry several labels."""

from .dense import MultiLabelFCOSHead, MultiLabelRetinaNetHead
from .fcos import MultiLabelFCOS
from .retinanet import MultiLabelRetinaNet

__all__ = ["MultiLabelFCOS", "MultiLabelFCOSHead", "MultiLabelRetinaNet", "MultiLabelRetinaNetHead"]
