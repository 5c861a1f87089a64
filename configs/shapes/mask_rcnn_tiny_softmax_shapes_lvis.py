from ..common.models.mask_rcnn_tiny import model
from .faster_rcnn_tiny_softmax_shapes_lvis import dataloader, datasets, lr_multiplier, optimizer, train

model.roi_heads.box_predictor.test_score_thresh = 0.0001
model.roi_heads.box_predictor.test_pre_nms_topk = 3000
model.roi_heads.box_predictor.test_topk_per_image = 300
dataloader.train.mapper.mask_format = "polygon"
dataloader.evaluator.tasks = ["bbox", "segm"]
train.output_dir = "./output/mask_rcnn_tiny_softmax_shapes_lvis"
