"""The contract between a region classifier and its loss.

Shape shorthand in this package:

    R: number of regions (RoIs or anchors), combined over all images of the minibatch; may be 0
    K: number of foreground classes; class index K and the last column mean background (Detectron2's order)
    L: number of logits a loss asks for: K + 1 for softmax, K for sigmoid, whatever it needs

A predictor asks its loss how many logits to produce, how they become scores, which bias to start from and
what they cost. It knows no loss by name, and a loss knows nothing of boxes, images or detectors.

A loss serves regions that a detector has sampled (:meth:`ClassificationLoss.forward`). To serve dense heads,
RetinaNet's and FCOS's, too, it has :meth:`ClassificationLoss.dense_loss`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from longtail_det2.layers import at_least_float32 as at_least_float32  # for losses of one's own, too
from longtail_det2.structures.dense_targets import DenseTargets
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

    Attributes:
        counting: False while a forward pass is repeated for the gradient of the first one (activation
            checkpointing): what the loss keeps of the batches that it saw must not change then.
    """

    counting: bool = True

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

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """Losses of the anchors of a dense head; a loss need not have this.

        Almost all anchors are background, so that a mean over them says nothing: the sum over anchors is
        divided by `normalizer`, which the detector makes from the number of positive anchors.

        Args:
            logits: (R, L) of all anchors of a batch, any floating type.
            targets: of the same anchors, on the same device. Ignored ones have class -1 and no loss.
            normalizer: scalar, positive, without gradient.

        Returns:
            As of :meth:`forward`.

        Raises:
            ConfigError: the loss has no form for dense heads. Detectors find that out when they are built
                (:func:`check_serves_dense_heads`).
        """
        raise ConfigError(_no_dense_form(self))

    def dense_bias(self, num_logits: int) -> Tensor | None:
        """(L,) bias that the classifier of a dense head starts from; by default :meth:`initial_bias`."""
        return self.initial_bias(num_logits)


def check_serves_dense_heads(loss: ClassificationLoss) -> None:
    """Makes sure that a loss has a form for dense heads.

    A subclass that changes :meth:`ClassificationLoss.forward` and inherits ``dense_loss`` is refused as well:
    in a dense head it would silently be another loss.

    Raises:
        ConfigError: it has none.
    """
    order = type(loss).__mro__
    dense, sampled = (
        next(index for index, one in enumerate(order) if name in vars(one))
        for name in ("dense_loss", "forward")
    )
    if order[dense] is ClassificationLoss or dense > sampled:
        raise ConfigError(_no_dense_form(loss))


def _no_dense_form(loss: ClassificationLoss) -> str:
    known = sorted(
        name
        for name, one in CLASSIFICATION_LOSS_REGISTRY
        if getattr(one, "dense_loss", None) is not ClassificationLoss.dense_loss
    )
    return (
        f"{type(loss).__name__} cannot serve a dense head (RetinaNet, FCOS): it has no dense_loss of its "
        f"own. Choose one that has ({', '.join(known)}), or a detector with ROI heads."
    )


def build_classification_loss(
    cfg: CfgNode,
    num_classes: int,
    hierarchy: LabelHierarchy | None = None,
    key: str = "MODEL.ROI_BOX_HEAD.CLASSIFICATION_LOSS",
) -> ClassificationLoss:
    """The loss that the config names.

    Args:
        cfg: Detectron2's config with this project's keys.
        num_classes: K.
        hierarchy: of the K classes, for losses that use it.
        key: where in `cfg` the name stands.

    Raises:
        ConfigError: no loss has that name, or `num_classes` is not positive.
    """
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    name = str(node)
    if num_classes < 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; a model needs at least one class. The train "
            "scripts replace -1 by the number of classes of DATASETS.TRAIN; elsewhere set the key yourself."
        )
    if name not in CLASSIFICATION_LOSS_REGISTRY:
        known = sorted(key for key, _ in CLASSIFICATION_LOSS_REGISTRY)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: there is no loss {name!r}.{hint} Known: {', '.join(known)}.")
    return CLASSIFICATION_LOSS_REGISTRY.get(name)(cfg, num_classes=num_classes, hierarchy=hierarchy)
