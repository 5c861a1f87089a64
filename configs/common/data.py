import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from longtail_det2.data.build import build_test_loader, build_train_loader, get_dataset
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import hierarchy_of
from longtail_det2.data.statistics import image_counts_of
from longtail_det2.evaluation.evaluator import build_evaluators

dataloader = OmegaConf.create(flags={"allow_objects": True})

# Images as in Detectron2's COCO configs; the data sets' names are the config's.
dataloader.train = L(build_train_loader)(
    dataset=L(get_dataset)(names="", filter_empty=True),
    mapper=L(MultiLabelDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=(640, 672, 704, 736, 768, 800), max_size=1333, sample_style="choice"
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="BGR",
        hierarchy=L(hierarchy_of)(names="${...dataset.names}"),
        ignore_descendants=True,
        group_of="keep",
        mask_format=None,
        recompute_boxes=False,
    ),
    sampler="UniformTrainingSampler",
    phases=[],  # of "PhasedTrainingSampler": [sampler, iterations] or [sampler, iterations, {option: value}]
    total_batch_size=16,
    aspect_ratio_grouping=True,
    num_workers=4,
    seed=None,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_dataset)(names=""),
    mapper=L(MultiLabelDatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(build_evaluators)(
    dataset="${..test.dataset.names}",
    metrics=[],  # any of "open_images", "coco", "lvis", or "image_labels"; none: what fits the data
    tasks=["bbox"],
    open_images=dict(
        iou_threshold=0.5, group_of_weight=1.0, expand_predictions=True, write_predictions_csv=True
    ),
    coco=dict(max_detections=100),
    lvis=dict(max_detections=300, fixed_ap_detections=10000),
    image_labels=dict(score_threshold=0.5),
    train_counts=L(image_counts_of)(names="${...train.dataset.names}"),
    frequency_thresholds=None,
)
