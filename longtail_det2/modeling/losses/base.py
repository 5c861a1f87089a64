"""The contract between a region classifier and its loss.

Shape shorthand in this package:

    R: number of regions (RoIs or anchors), combined over all images of the minibatch; may be 0
    K: number of foreground classes; class index K and the last column mean background (Detectron2's order)
    L: number of logits a loss asks for: K + 1 for softmax, K for sigmoid, whatever it needs

A predictor asks its loss how many logits to produce, how they become scores, which bias to start from and
what they cost. It knows no loss by name, and a loss knows nothing of boxes, images or detectors.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from longtail_det2.structures.multi_label import MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy

CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")
CLASSIFICATION_LOSS_REGISTRY.__doc__ = """
Classification losses by class name, the values of ``MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS``.

A registered class is a :class:`ClassificationLoss` whose ``__init__`` is decorated with Detectron2's
``configurable`` and whose ``from_config(cls, cfg, num_classes, hierarchy)`` returns the arguments of it.
"""


class ClassificationLoss(nn.Module, ABC):
    """What a region classifier minimises, and how its logits are read.

    State (counts, rates, frequencies) lives in buffers, so that checkpoints keep it and ``.to(device)`` moves
    it. A subclass computes in at least float32 whatever the logits' type (:func:`at_least_float32`),
    synchronises nothing with the host, returns the same keys for every batch, and keeps its results attached
    to the graph also when there are no regions or no positives.
    """

    @abstractmethod
    def num_logits(self, num_classes: int) -> int:
        """L, the width of the classifier for K = `num_classes` foreground classes."""

    @abstractmethod
    def activation(self, logits: Tensor) -> Tensor:
        """Scores of regions.

        Args:
            logits: (R, L), any floating type.

        Returns:
            (R, K + 1) in [0, 1], at least float32, background in the last column. A loss that scores each
            class by itself has no background score and puts 0 there.
        """

    @abstractmethod
    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            logits: (R, L), any floating type.
            targets: of the same R regions, on the same device.

        Returns:
            Scalars by name; the names begin with "loss_". Their sum is minimised.
        """

    def initial_bias(self, num_logits: int) -> Tensor | None:
        """(L,) bias that the classifier starts from, or None for zeros."""
        return None


def build_classification_loss(
    cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
) -> ClassificationLoss:
    """The loss that ``MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS`` names.

    Args:
        cfg: Detectron2's config with this project's keys.
        num_classes: K.
        hierarchy: of the K classes, for losses that use it.

    Raises:
        ConfigError: no loss has that name, or `num_classes` is not positive.
    """
    name = cfg.MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS
    if num_classes < 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; a model needs at least one class. The train "
            "scripts replace -1 by the number of classes of DATASETS.TRAIN; elsewhere set the key yourself."
        )
    if name not in CLASSIFICATION_LOSS_REGISTRY:
        known = sorted(key for key, _ in CLASSIFICATION_LOSS_REGISTRY)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS: there is no loss {name!r}.{hint} "
            f"Known: {', '.join(known)}."
        )
    return CLASSIFICATION_LOSS_REGISTRY.get(name)(cfg, num_classes=num_classes, hierarchy=hierarchy)


def at_least_float32(values: Tensor) -> Tensor:
    """`values` as float32 where they are narrower; float64 stays, so that gradients can be checked in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
