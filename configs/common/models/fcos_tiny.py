from .faster_rcnn_tiny import model as faster_rcnn
from .fcos import model

model.backbone = faster_rcnn.backbone
model.pixel_mean = faster_rcnn.pixel_mean
model.pixel_std = faster_rcnn.pixel_std
model.num_classes = -1  # as many as the training data have
model.head_in_features = ["p3"]
model.head.input_shape = model.head.input_shape[:1]
model.head.input_shape[0].channels = 64
model.head.conv_dims = [64, 64]
model.head.norm = "BN"
model.test_score_thresh = 0.01
