from .fcos import model
from .retinanet_tiny import model as retinanet

# All but what FCOS does by itself: the anchors.
for key in ("backbone", "pixel_mean", "pixel_std", "num_classes", "head_in_features"):
    model[key] = retinanet[key]
for key in ("input_shape", "conv_dims", "norm"):
    model.head[key] = retinanet.head[key]
model.test_score_thresh = 0.01
