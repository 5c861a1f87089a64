"""Every config has a lazy twin that builds the same model and says the same of training and testing."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import detection_utils
from omegaconf import OmegaConf

from longtail_det2 import model_zoo
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.samplers import parse_phases
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.engine.solver import (
    build_lr_multiplier,
    build_optimizer,
    lr_arguments,
    optimizer_arguments,
)
from longtail_det2.engine.trainer import evaluator_options

REALLY_BUILT = ("shapes", "faster_rcnn_R_50_FPN_OpenImages", "R_50_FPN_OpenImages_sigmoid")
"""Names that end like this get weights; of the others, which are larger or similar, only shapes are made."""
NAMES = [name.removesuffix(".yaml") for name in model_zoo.list_configs() if name.endswith(".yaml")]


def pair(name):
    cfg, lazy = (model_zoo.get_config(f"{name}.{suffix}") for suffix in ("yaml", "py"))
    cfg.MODEL.DEVICE = lazy.train.device = "cpu"
    node = lazy.model.get("roi_heads") or lazy.model
    assert node.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = node.num_classes = 7
    return cfg, lazy


def test_every_yaml_config_has_a_lazy_twin():
    lazy = {name.removesuffix(".py") for name in model_zoo.list_configs() if name.endswith(".py")}
    assert lazy == set(NAMES)


def numbers(tensor):
    return tuple(tensor.shape) if tensor.is_meta else tensor.tolist()


MATCHER = ["thresholds", "labels", "allow_low_quality_matches"]
TEST = ["test_score_thresh", "test_nms_thresh"]


def settings(model):
    """Everything a detector computes with that is no parameter, by name."""
    found = two_stage_settings(model) if hasattr(model, "roi_heads") else dense_settings(model)
    found["pixels"] = [numbers(model.pixel_mean), numbers(model.pixel_std)]
    found["divisibility"] = model.backbone.size_divisibility
    found["frozen"] = [name for name, p in model.named_parameters() if not p.requires_grad]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def values(parts):
    found = {f"{part}.{key}": getattr(obj, key) for part, (obj, keys) in parts.items() for key in keys}
    return {key: numbers(one) if isinstance(one, torch.Tensor) else one for key, one in found.items()}


def score_thresholds(cfg, lazy):
    """Of both configs; a model on the meta device has no values."""
    if "roi_heads" not in lazy.model:
        node = cfg.MODEL.FCOS if "FCOS" in cfg.MODEL.META_ARCHITECTURE else cfg.MODEL.RETINANET
        return {node.SCORE_THRESH_TEST}, {lazy.model.test_score_thresh}
    heads = lazy.model.roi_heads
    predictors = heads.get("box_predictors") or [heads.box_predictor]
    return {cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST}, {one.test_score_thresh for one in predictors}


def dense_settings(model):
    names = ["num_classes", "head_in_features", "test_topk_candidates", "max_detections_per_image"]
    parts = {
        "model": (model, [*names, *TEST]),
        "head": (model.head, ["num_logits"]),
        "anchors": (model.anchor_generator, ["strides", "offset", "num_anchors"]),
    }
    if hasattr(model, "anchor_matcher"):
        parts["retinanet"] = (model, ["smooth_l1_beta", "box_reg_loss_type", "input_format", "vis_period"])
        parts["matcher"] = (model.anchor_matcher, MATCHER)
        parts["transform"] = (model.box2box_transform, ["weights"])
    else:
        parts["fcos"] = (model, ["center_sampling_radius"])
        parts["transform"] = (model.box2box_transform, ["normalize_by_size"])
    found = {key: list(v) if isinstance(v, tuple) else v for key, v in values(parts).items()}
    found["anchor cells"] = [numbers(cell) for cell in model.anchor_generator.cell_anchors]
    found["loss"] = repr(model.head.classification_loss)
    return found


def two_stage_settings(model):
    heads, rpn = model.roi_heads, model.proposal_generator
    cascade = isinstance(heads.box_predictor, torch.nn.ModuleList)
    predictors = list(heads.box_predictor) if cascade else [heads.box_predictor]
    matchers = heads.proposal_matchers if cascade else [heads.proposal_matcher]
    parts = {
        "heads": (heads, ["num_classes", "batch_size_per_image", "positive_fraction", "proposal_append_gt"]),
        "features": (heads, ["box_in_features", "train_on_pred_boxes"]),
        "pooler": (heads.box_pooler, ["output_size", "min_level", "max_level"]),
        "rpn": (rpn, ["in_features", "batch_size_per_image", "positive_fraction", "nms_thresh"]),
        "rpn2": (
            rpn,
            ["pre_nms_topk", "post_nms_topk", "min_box_size", "loss_weight", "anchor_boundary_thresh"],
        ),
        "rpn3": (rpn, ["box_reg_loss_type", "smooth_l1_beta"]),
        "rpn matcher": (rpn.anchor_matcher, ["thresholds", "labels", "allow_low_quality_matches"]),
        "anchors": (rpn.anchor_generator, ["strides", "offset", "num_anchors"]),
        "model": (model, ["input_format", "vis_period"]),
    }
    for stage, (predictor, matcher) in enumerate(zip(predictors, matchers, strict=True)):
        names = [*TEST, "test_topk_per_image", "test_pre_nms_topk"]
        names += ["smooth_l1_beta", "box_reg_loss_type", "num_classes"]
        parts |= {f"predictor{stage}": (predictor, names), f"matcher{stage}": (matcher, MATCHER)}
    found = values(parts)
    found["sampling_ratios"] = [level.sampling_ratio for level in heads.box_pooler.level_poolers]
    found["poolers"] = [level.aligned for level in heads.box_pooler.level_poolers]
    found["anchors"] = [numbers(cell) for cell in rpn.anchor_generator.cell_anchors]
    found["box transforms"] = [list(part.box2box_transform.weights) for part in (rpn, *predictors)]
    keys = ("loss_cls", "loss_box_reg")
    found["loss weights"] = [predictor.loss_weight.get(key, 1.0) for predictor in predictors for key in keys]
    found["losses"] = [repr(predictor.classification_loss) for predictor in predictors]
    found["masks"] = heads.mask_on
    if heads.mask_on:
        pooler, head = heads.mask_pooler, heads.mask_head
        found["mask head"] = [heads.mask_in_features, head.loss_weight, head.vis_period]
        found["mask pooler"] = [list(pooler.output_size), pooler.min_level, pooler.max_level]
        found["mask sampling"] = [
            [level.sampling_ratio, level.aligned, level.spatial_scale] for level in pooler.level_poolers
        ]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_twins_build_the_same_model(name):
    cfg, lazy = pair(name)
    device = "cpu" if name.endswith(REALLY_BUILT) else "meta"
    cfg.MODEL.DEVICE = lazy.train.device = device
    with torch.device(device):
        torch.manual_seed(0)
        ours = build_model(cfg)
        torch.manual_seed(0)
        theirs = build_lazy_model(lazy)
    assert str(ours) == str(theirs)
    assert settings(ours) == settings(theirs)
    yaml_thresholds, lazy_thresholds = score_thresholds(cfg, lazy)
    assert yaml_thresholds == lazy_thresholds
    weights, twin = ours.state_dict(), theirs.state_dict()
    assert list(weights) == list(twin)
    assert [w.shape for w in weights.values()] == [w.shape for w in twin.values()]
    if device == "cpu":  # the same seed makes the same weights
        assert all(torch.equal(weights[key], twin[key]) for key in weights)
    assert [p.stride() for p in ours.parameters()] == [p.stride() for p in theirs.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_twins_train_alike(name):
    cfg, lazy = pair(name)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert lazy.train.checkpointer.max_to_keep == cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert lazy.train.eval_period == cfg.TEST.EVAL_PERIOD
    assert lazy.train.seed == cfg.SEED
    assert lazy.train.amp.enabled == cfg.SOLVER.AMP.ENABLED
    assert list(lazy.model.pixel_mean) == cfg.MODEL.PIXEL_MEAN
    assert list(lazy.model.pixel_std) == cfg.MODEL.PIXEL_STD
    assert lazy.train.channels_last == cfg.MODEL.CHANNELS_LAST
    ours, theirs = build_lr_multiplier(**lr_arguments(cfg)), instantiate(lazy.lr_multiplier)
    points = [i / 1000 for i in range(1000)]
    assert [ours(x) for x in points] == pytest.approx([theirs(x) for x in points], rel=1e-9)

    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    lazy.optimizer.model = layer
    ours = build_optimizer(layer, **optimizer_arguments(cfg))
    theirs = instantiate(lazy.optimizer)
    assert type(ours) is type(theirs)
    described = ({**group, "params": len(group["params"])} for group in ours.param_groups)
    assert list(described) == [{**g, "params": len(g["params"])} for g in theirs.param_groups]
    clip = cfg.SOLVER.CLIP_GRADIENTS
    found = (lazy.optimizer.get("clip_type", ""), lazy.optimizer.get("clip_value", 0.0))
    assert found == ((clip.CLIP_TYPE, clip.CLIP_VALUE) if clip.ENABLED else ("", 0.0))


@pytest.mark.parametrize("name", NAMES)
def test_twins_read_the_same_data(name):
    cfg, lazy = pair(name)
    train, test = lazy.dataloader.train, lazy.dataloader.test
    assert (train.dataset.names,) == tuple(cfg.DATASETS.TRAIN)
    assert (test.dataset.names,) == tuple(cfg.DATASETS.TEST) == (lazy.dataloader.evaluator.dataset,)
    assert train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert train.sampler == cfg.DATALOADER.SAMPLER_TRAIN
    assert parse(train.get("phases", ())) == parse(cfg.DATALOADER.PHASES)
    if train.sampler == "SoftBalanceTrainingSampler":
        assert train.sampler_options["lambda_"] == cfg.DATALOADER.SOFT_BALANCE.LAMBDA
    if train.sampler == "RepeatFactorTrainingSampler":
        assert train.sampler_options["threshold"] == cfg.DATALOADER.REPEAT_THRESHOLD
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert train.aspect_ratio_grouping == cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert train.num_workers == test.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert (-1 if train.seed is None else train.seed) == cfg.SEED
    assert (train.mapper.group_of, train.mapper.ignore_descendants) == (
        cfg.INPUT.GROUP_OF,
        cfg.INPUT.IGNORE_DESCENDANTS,
    )
    assert train.mapper.mask_format == (cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None)
    assert not train.mapper.recompute_boxes and not cfg.INPUT.CROP.ENABLED
    assert train.mapper.image_format == test.mapper.image_format == cfg.INPUT.FORMAT
    for node, is_train in ((train, True), (test, False)):
        assert node.mapper.is_train is is_train and node.mapper._target_ is MultiLabelDatasetMapper
        found = [attributes(one) for one in instantiate(node.mapper.augmentations)]
        assert found == [attributes(one) for one in detection_utils.build_augmentation(cfg, is_train)]


def parse(stages):
    return parse_phases(OmegaConf.to_container(OmegaConf.create(list(stages)))) if len(stages) else ()


def attributes(augmentation):
    """What an augmentation does; a single length stands for itself twice."""
    found = {key: value for key, value in vars(augmentation).items() if key != "interp"}
    lengths = found.get("short_edge_length")
    if lengths is not None:
        lengths = [lengths] if isinstance(lengths, int) else list(lengths)
        found["short_edge_length"] = sorted(set(lengths))
        found.pop("is_range"), found.pop("sample_style", None)
    return type(augmentation).__name__, found


@pytest.mark.parametrize("name", NAMES)
def test_twins_are_evaluated_alike(name):
    cfg, lazy = pair(name)
    options, lazy_options = evaluator_options(cfg), lazy.dataloader.evaluator
    for name, value in options.items():
        other = lazy_options[name]
        if name == "frequency_thresholds":
            value, other = tuple(value), tuple(other or ())
        assert (dict(other) if isinstance(value, dict) else tuple(other)) == value, name


def test_published_schedule_of_lvis():
    cfg = model_zoo.get_config("lvis/mask_rcnn_R_50_FPN_2x_LVIS.yaml")
    solver, epoch = cfg.SOLVER, -(-100170 // cfg.SOLVER.IMS_PER_BATCH)
    assert (solver.MAX_ITER, *solver.STEPS) == (24 * epoch, 16 * epoch, 22 * epoch)
    multiplier = build_lr_multiplier(**lr_arguments(cfg))
    assert multiplier(0) == pytest.approx(1e-3) and multiplier(500 / solver.MAX_ITER) == 1


def test_published_schedule():
    cfg = model_zoo.get_config("openimages/faster_rcnn_R_50_FPN_OpenImages.yaml")
    epoch = 1743042 // cfg.SOLVER.IMS_PER_BATCH
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, *solver.STEPS) == (12 * epoch, 8 * epoch, 11 * epoch)
    multiplier = build_lr_multiplier(**lr_arguments(cfg))
    assert multiplier(0) == pytest.approx(1 / 64)
    at = [multiplier(epochs / 12) for epochs in (5, 9, 11.5)]
    assert at == pytest.approx([1.0, 0.1, 0.01])
