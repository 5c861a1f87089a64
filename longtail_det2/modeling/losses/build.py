"""The registry of classification losses, and the loss that a config names."""

from __future__ import annotations

import difflib
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from longtail_det2.data.statistics import read_statistics
from longtail_det2.utils.errors import ConfigError

from .base import ClassificationLoss

CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")
CLASSIFICATION_LOSS_REGISTRY.__doc__ = """
Classification losses by class name, the values of ``MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS``.

A registered class is a :class:`ClassificationLoss` whose ``__init__`` is decorated with Detectron2's
``configurable``; see :meth:`ClassificationLoss.from_config`.
"""


def build_classification_loss(
    cfg: CfgNode, num_classes: int, key: str = "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS"
) -> ClassificationLoss:
    """Build the loss whose name is at `key` of Detectron2's config with this project's keys.

    Raises:
        ConfigError: no loss has that name, `num_classes` is not positive, or ``DATASETS.STATISTICS`` has
            another number of classes.
        DataError: ``DATASETS.STATISTICS`` cannot be read, or lacks what the loss needs.
    """
    name: Any = reduce(CfgNode.__getitem__, key.split("."), cfg)
    if name not in CLASSIFICATION_LOSS_REGISTRY:
        known = sorted(name for name, _ in CLASSIFICATION_LOSS_REGISTRY)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: there is no loss {name!r}.{hint} Known: {', '.join(known)}.")
    path = cfg.DATASETS.STATISTICS
    statistics = read_statistics(path) if path else None
    if statistics and num_classes > 0 and len(statistics.class_ids) != num_classes:
        raise ConfigError(
            f"DATASETS.STATISTICS: {path} has {len(statistics.class_ids)} classes, the model {num_classes}"
        )
    return CLASSIFICATION_LOSS_REGISTRY.get(name)(cfg, num_classes=num_classes, statistics=statistics)
