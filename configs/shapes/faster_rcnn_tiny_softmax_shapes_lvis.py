from ..common.models.faster_rcnn_tiny import model
from .faster_rcnn_tiny_softmax_shapes import dataloader, datasets, lr_multiplier, optimizer, train

model.roi_heads.box_predictor.test_score_thresh = 0.0001
model.roi_heads.box_predictor.test_pre_nms_topk = 3000
model.roi_heads.box_predictor.test_topk_per_image = 300
dataloader.train.dataset.names = "shapes_lvis_train"
dataloader.test.dataset.names = "shapes_lvis_validation"
train.output_dir = "./output/faster_rcnn_tiny_softmax_shapes_lvis"
