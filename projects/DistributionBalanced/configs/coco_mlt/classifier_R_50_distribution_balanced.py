import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from longtail_det2.data.statistics import image_counts_of, num_images_of
from longtail_det2.modeling.losses import DistributionBalancedLoss
from longtail_det2.modeling.meta_arch import MultiLabelClassifier

from .....configs.common.data import dataloader
from .....configs.common.optim import SGD as optimizer
from .....configs.common.optim import steps as lr_multiplier
from .....configs.common.train import datasets, train

# The YAML config says where the numbers are from.
_resnet = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.backbone.bottom_up
_resnet.update(freeze_at=2, out_features=["res5"])
_resnet.stages.update(norm="${..stem.norm}", stride_in_1x1=False)
_names = "${dataloader.train.dataset.names}"
model = L(MultiLabelClassifier)(
    backbone=_resnet,
    num_classes=-1,  # as many as the training data have
    classification_loss=L(DistributionBalancedLoss)(
        num_classes="${..num_classes}",
        image_counts=L(image_counts_of)(names=_names, image_level=True),
        num_images=L(num_images_of)(names=_names),
    ),
    in_features=["res5"],
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
dataloader.train.dataset.update(names="coco_mlt_train", image_level=True)
dataloader.train.mapper.update(
    augmentations=[
        L(T.RandomCrop)(crop_type="relative_range", crop_size=[0.8, 0.8]),
        L(T.Resize)(shape=[224, 224]),
        L(T.RandomFlip)(horizontal=True),
        L(T.RandomBrightness)(intensity_min=0.5, intensity_max=1.5),
        L(T.RandomContrast)(intensity_min=0.5, intensity_max=1.5),
        L(T.RandomSaturation)(intensity_min=0.5, intensity_max=1.5),
    ],
    image_format="RGB",
    image_level=True,
)
dataloader.train.update(
    sampler="ClassAwareTrainingSampler",
    sampler_options=dict(num_samples_per_class=3),
    total_batch_size=32,
    aspect_ratio_grouping=False,
)
dataloader.test.dataset.names = "coco_mlt_test"
dataloader.test.mapper.augmentations = [L(T.Resize)(shape=[224, 224])]
dataloader.evaluator.update(metrics=["image_labels"], frequency_thresholds=(20, 100))
dataloader.evaluator.train_counts.image_level = True

optimizer.update(clip_type="full_model", clip_value=35.0)
lr_multiplier.update(steps=[3525, 4935], warmup_iters=500, warmup_factor=0.333333)
train.update(max_iter=5640, init_checkpoint="detectron2://ImageNetPretrained/torchvision/R-50.pkl")
