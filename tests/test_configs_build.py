"""Every config builds; YAML and lazy twins build, train and evaluate the same model."""

from collections.abc import Mapping

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import ListConfig, OmegaConf
from torch import nn

from longtail_det2 import model_zoo
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper, build_augmentation
from longtail_det2.data.samplers import ClassAwareTrainingSampler, parse_phases
from longtail_det2.engine.build import build_lazy_model, build_model
from longtail_det2.engine.solver import (
    build_lr_multiplier,
    build_optimizer,
    lr_arguments,
    optimizer_arguments,
)
from longtail_det2.engine.trainer import evaluator_options

REALLY_BUILT = ("shapes", "openimages/faster_rcnn_R_50_FPN_OpenImages")
"""Names that end like this get weights; of the others, which are larger or similar, only shapes are made."""
LAZY = {name.removesuffix(".py") for name in model_zoo.list_configs() if name.endswith(".py")}
YAML = {name.removesuffix(".yaml") for name in model_zoo.list_configs() if name.endswith(".yaml")}


def read(name, device):
    cfg = model_zoo.get_config(f"{name}.yaml")
    cfg.MODEL.DEVICE = device
    seesaw = cfg.MODEL.CLASSIFICATION_LOSS.SEESAW
    seesaw.LABELS = seesaw.LABELS.replace("auto", "all")  # setup() replaces it by what fits the data
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    return cfg


@pytest.fixture(params=sorted(LAZY))
def twins(request):
    """Name of the twins, YAML config, lazy config."""
    device = "cpu" if request.param.endswith(REALLY_BUILT) else "meta"
    cfg, lazy = read(request.param, device), model_zoo.get_config(f"{request.param}.py")
    node = lazy.model.get("roi_heads") or lazy.model
    node.num_classes = 7 if node.num_classes < 0 else node.num_classes
    assert node.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert lazy.train.output_dir == cfg.OUTPUT_DIR == f"./output/{request.param.rpartition('/')[2]}"
    lazy.train.device = device
    return cfg, lazy


@pytest.mark.parametrize("name", sorted(name for name in YAML - LAZY if "tiny" not in name))
def test_builds(name):
    """The tiny ones are built where they are exported and trained."""
    assert sum(p.numel() for p in build_model(read(name, "meta")).parameters()) > 10**6


def plain(value):
    """A setting as plain lists and dicts, of tensors without values (on the meta device) their shapes."""
    if isinstance(value, torch.Tensor):
        return list(value.shape) if value.is_meta else value.tolist()
    if isinstance(value, (list, tuple, ListConfig)):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    matcher_or_such = type(value).__module__.startswith("detectron2.modeling") and not isinstance(
        value, nn.Module
    )
    return [getattr(value, "__name__", type(value).__name__), plain(vars(value)) if matcher_or_such else ""]


def settings(model):
    """Everything a detector computes with that is no parameter: public attributes of all its modules."""
    found = {
        f"{name}.{key}": plain(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_")
    }
    for name, value in found.items():
        if isinstance(value, dict) and name.endswith("loss_weight"):
            value.setdefault("loss_cls", 1.0)
    buffers = {name: plain(value) for name, value in model.named_buffers()}
    return found, buffers, [name for name, p in model.named_parameters() if not p.requires_grad]


def score_thresholds(cfg, lazy):
    """Of both configs; a model on the meta device has no values."""
    if cfg.INPUT.IMAGE_LEVEL:
        return set(), set()
    if "roi_heads" not in lazy.model:
        node = cfg.MODEL.FCOS if "FCOS" in cfg.MODEL.META_ARCHITECTURE else cfg.MODEL.RETINANET
        return {node.SCORE_THRESH_TEST}, {lazy.model.test_score_thresh}
    heads = lazy.model.roi_heads
    predictors = heads.get("box_predictors") or [heads.box_predictor]
    return {cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST}, {one.test_score_thresh for one in predictors}


def test_twins_build_the_same_model(twins):
    cfg, lazy = twins
    models = []
    for build, config in ((build_model, cfg), (build_lazy_model, lazy)):
        with torch.device(cfg.MODEL.DEVICE):
            torch.manual_seed(0)
            models.append(build(config))
    ours, theirs = models
    assert str(ours) == str(theirs)
    assert settings(ours) == settings(theirs)
    yaml_thresholds, lazy_thresholds = score_thresholds(cfg, lazy)
    assert yaml_thresholds == lazy_thresholds
    weights, twin = ours.state_dict(), theirs.state_dict()
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in twin.items()
    }
    if cfg.MODEL.DEVICE == "cpu":  # the same seed makes the same weights
        assert all(torch.equal(weights[key], twin[key]) for key in weights)
    assert [p.stride() for p in ours.parameters()] == [p.stride() for p in theirs.parameters()]


def test_twins_train_alike(twins):
    cfg, lazy = twins
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert lazy.train.checkpointer.max_to_keep == cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert tuple(lazy.train.reset_weights) == tuple(cfg.MODEL.RESET_WEIGHTS)
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


def test_twins_read_the_same_data(twins):
    cfg, lazy = twins
    train, test = lazy.dataloader.train, lazy.dataloader.test
    assert (train.dataset.names,) == tuple(cfg.DATASETS.TRAIN)
    assert (test.dataset.names,) == tuple(cfg.DATASETS.TEST) == (lazy.dataloader.evaluator.dataset,)
    assert train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert train.sampler == cfg.DATALOADER.SAMPLER_TRAIN
    assert parse(train.get("phases", ())) == parse(cfg.DATALOADER.PHASES)
    if train.sampler == "SoftBalanceTrainingSampler":
        assert train.sampler_options["lambda_"] == cfg.DATALOADER.SOFT_BALANCE.LAMBDA
    if train.sampler == "ClassAwareTrainingSampler":
        options = {"num_samples_per_class": 0, "reduce": 4}
        options |= train.get("sampler_options") or {}
        assert options == ClassAwareTrainingSampler.options_from_config(cfg)
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
    assert train.mapper.recompute_boxes == (cfg.INPUT.CROP.ENABLED and cfg.MODEL.MASK_ON)
    assert train.mapper.get("image_level", False) == cfg.INPUT.IMAGE_LEVEL
    assert train.dataset.get("image_level", False) == cfg.INPUT.IMAGE_LEVEL
    assert train.mapper.image_format == test.mapper.image_format == cfg.INPUT.FORMAT
    for node, is_train in ((train, True), (test, False)):
        assert node.mapper.is_train is is_train and node.mapper._target_ is MultiLabelDatasetMapper
        found = [attributes(one) for one in instantiate(node.mapper.augmentations)]
        assert found == [attributes(one) for one in build_augmentation(cfg, is_train)]


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


def test_twins_are_evaluated_alike(twins):
    cfg, lazy = twins
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
