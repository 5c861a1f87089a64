"""Dense detectors whose anchors carry several labels, and a classifier of images."""

from .classifier import MultiLabelClassifier
from .dense import MultiLabelFCOSHead, MultiLabelRetinaNetHead
from .fcos import MultiLabelFCOS
from .retinanet import MultiLabelRetinaNet

__all__ = [
    "MultiLabelClassifier",
    "MultiLabelFCOS",
    "MultiLabelFCOSHead",
    "MultiLabelRetinaNet",
    "MultiLabelRetinaNetHead",
]
