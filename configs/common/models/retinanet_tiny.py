from .faster_rcnn_tiny import model as faster_rcnn
from .retinanet import model

model.backbone = faster_rcnn.backbone
model.pixel_mean = faster_rcnn.pixel_mean
model.pixel_std = faster_rcnn.pixel_std
model.num_classes = -1  # as many as the training data have
model.head_in_features = ["p3"]
model.head.input_shape = model.head.input_shape[:1]
model.head.input_shape[0].channels = 64
model.head.num_anchors = 3
model.head.conv_dims = [64, 64]
model.head.norm = "BN"
model.anchor_generator.sizes = [[16, 32, 64]]
model.anchor_generator.aspect_ratios = [1.0]
model.anchor_generator.strides = [8]
