r"""Measured share of positive anchors, the optimal first score of a detector without sampling.

Chen et al., *Is Sampling Heuristics Necessary in Training Deep Object Detectors?*, start the classifier of N
anchors, N_f of them positive, and K classes at the score pi that has the least cross entropy

    CE(pi) = -[N_f ln pi + (N K - N_f) ln(1 - pi)]   =>   pi = N_f / (N K),   bias b = -ln((1 - pi) / pi).

The counts come from `longtail-det2 anchor-statistics`, which matches an epoch's anchors without the network.
"""

from __future__ import annotations

import json
import logging
from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from longtail_det2.data.statistics import AnchorStatistics, read_statistics
from longtail_det2.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_SETTINGS = (
    *("DATASETS.TRAIN", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "DATALOADER.SAMPLER_TRAIN"),
    *("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SOFT_BALANCE", "DATALOADER.CLASS_AWARE"),
    *("DATALOADER.PHASES",),
    *("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MAX_SIZE_TRAIN", "INPUT.CROP"),
    *("INPUT.GROUP_OF", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"),
)
_MATCHING = {
    "MultiLabelRetinaNet": "ANCHOR_GENERATOR RETINANET.IN_FEATURES RETINANET.IOU_THRESHOLDS "
    "RETINANET.IOU_LABELS",
    "MultiLabelFCOS": "FCOS.IN_FEATURES FCOS.CENTER_SAMPLING_RADIUS",
}
_RPN_MATCHING = "ANCHOR_GENERATOR RPN.IN_FEATURES RPN.IOU_THRESHOLDS RPN.IOU_LABELS RPN.BOUNDARY_THRESH"
_COMMAND = (
    "run longtail-det2 anchor-statistics --config-file CONFIG --output FILE with this config and set "
    "DATASETS.STATISTICS to FILE"
)


def anchor_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys of a YAML config that anchor counts depend on, with their values as JSON has them.

    The batch size, through the padding, and the random numbers change counts by a few per cent; they are not
    among the keys.
    """
    matching = _MATCHING.get(cfg.MODEL.META_ARCHITECTURE, _RPN_MATCHING)
    settings: dict[str, Any] = {}
    for key in (*_SETTINGS, *(f"MODEL.{name}" for name in matching.split())):
        value: Any = reduce(CfgNode.__getitem__, key.split("."), cfg)
        if isinstance(value, CfgNode):
            settings |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            settings[key] = value
    return json.loads(json.dumps(settings))


def anchor_prior(anchors: AnchorStatistics, kind: str) -> float | Tensor:
    """Return the share of positive anchors, the score that classifiers best start with.

    Args:
        anchors: counts.
        kind: "objectness": N_f / N, of an RPN's one class. "shared": sum_j n_j / (N K), one score for all
            classes: where every object has one label, the paper's N_f / (N K); with several labels per object
            there are sum_j n_j positive pairs of anchor and class, and the cross entropy is least here.
            "per_class": n_j / N, which is least for each class by itself (not in the paper, whose class-
            adaptive threshold it equals); a class without a positive anchor counts as if it had one.

    Returns:
        A number in (0, 1), or (K,) float64 in (0, 1).

    Raises:
        ConfigError: an unknown kind, or no anchor is positive, or all are.
    """
    if not 0 < anchors.foreground < anchors.number:
        raise ConfigError(
            f"{anchors.foreground} of {anchors.number} anchors are positive, so that there is no prior: are "
            "there objects in the training data, and are the anchors of their sizes?"
        )
    if kind == "objectness":
        return anchors.foreground / anchors.number
    if kind == "shared":
        return int(anchors.positives.sum()) / (anchors.number * len(anchors.positives))
    if kind == "per_class":
        return torch.from_numpy(anchors.positives).clamp(min=1).double() / anchors.number
    raise ConfigError(f"the prior must be 'objectness', 'shared' or 'per_class', not {kind!r}")


def measured_prior(cfg: CfgNode, kind: str) -> float | Tensor | None:
    """Return :func:`anchor_prior` of the counts in ``DATASETS.STATISTICS``.

    None, with a warning, if no file is named: the train scripts count before they build the model, and
    without data, as for export, no prior is needed.

    Raises:
        ConfigError: the file has no anchors, or those of another number of classes or of other settings; or
            see :func:`anchor_prior`.
        DataError: the file cannot be read.
    """
    path, num_classes = cfg.DATASETS.STATISTICS, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not path:
        logger.warning("the measured prior is not known, and a fixed one is used. To train, %s", _COMMAND)
        return None
    statistics = read_statistics(path)
    anchors, found = statistics.anchors, len(statistics.class_ids)
    if num_classes > 0 and found != num_classes:
        raise ConfigError(
            f"DATASETS.STATISTICS: {path} has {found} classes, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{num_classes}: {_COMMAND}"
        )
    if anchors is None:
        raise ConfigError(f"DATASETS.STATISTICS: {path} has no anchor counts: {_COMMAND}")
    expected = anchor_settings(cfg)
    for key in sorted(expected.keys() | anchors.settings.keys()):
        counted, own = anchors.settings.get(key), expected.get(key)
        if counted != own:
            raise ConfigError(
                f"DATASETS.STATISTICS: the anchors of {path} were counted with {key} {counted!r}, but it is "
                f"{own!r}: {_COMMAND}"
            )
    return anchor_prior(anchors, kind)


def has_measured_prior(cfg: CfgNode) -> bool:
    """Whether a detector of a YAML config begins at a measured prior."""
    return cfg.MODEL.DENSE_HEAD.PRIOR != "fixed" or cfg.MODEL.RPN.PRIOR_PROB == 0


def forget_measured_prior(cfg: CfgNode) -> None:
    """Change a YAML config whose weights are trained: they do not begin at any prior, and need no counts."""
    cfg.MODEL.DENSE_HEAD.PRIOR = "fixed"
    cfg.MODEL.RPN.PRIOR_PROB = cfg.MODEL.RPN.PRIOR_PROB or 0.5
