"""From losses per row to the scalars of a training step; shared by RoI heads, dense heads and the RPN."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.structures.multi_label import DenseTargets
from longtail_det2.utils.errors import ConfigError

from .base import ClassificationLoss

NORMALIZERS = ("regions", "foreground", "foreground_average", "elements")


def reduce_losses(
    unreduced: Mapping[str, Tensor],
    normalizer: float | Tensor,
    weights: float | Mapping[str, float] = 1.0,
) -> dict[str, Tensor]:
    """Sum the losses of all rows, divide them by the head's normalizer and weight them.

    Args:
        unreduced: tensors of any shape by name.
        normalizer: positive scalar without gradient.
        weights: for all keys alike, or by key; a key without one takes that of ``loss_cls``, else 1.

    Returns:
        Scalars with the same keys.
    """
    if not isinstance(weights, Mapping):
        weights = {"loss_cls": weights}
    default = weights.get("loss_cls", 1.0)
    return {
        name: values.sum() / normalizer * weights.get(name, default) for name, values in unreduced.items()
    }


def dense_unreduced(loss: ClassificationLoss, logits: Tensor, targets: DenseTargets) -> dict[str, Tensor]:
    """Compute the losses of anchors, almost all of them background, without an (R, K) label matrix.

    Args:
        loss: any loss; one for dense heads has its own :meth:`ClassificationLoss.background`.
        logits: (R, L) of all anchors of a batch.
        targets: of the same anchors.

    Returns:
        (R + P,) each, by name: those of the background rows (0 elsewhere), then of the P positive rows.
    """
    positive = loss.unreduced(logits[targets.rows], targets.positives)
    return {
        name: torch.cat([torch.where(targets.background, values, 0), positive[name]])
        for name, values in loss.background(logits).items()
    }


class LossNormalizer(nn.Module):
    """The number that a head divides the sum of its losses over regions by, always at least 1.

    ======================  ===========================================================================
    ``regions``             all sampled regions of this process (Fast R-CNN)
    ``foreground``          foreground regions of this process
    ``foreground_average``  a moving average of the foreground regions of all processes, divided by the
                            number of processes (RetinaNet, FCOS)
    ``elements``            regions times classes, which makes the classification loss a mean over its
                            elements; a box loss, which has no classes, is divided by the regions
    ======================  ===========================================================================

    The average is ``average <- momentum * average + (1 - momentum) * max(foreground, 1)`` as in Detectron2.
    Two things differ: it is a buffer, so that a resumed run continues it, and it counts over all processes,
    so that several processes with a part of the batch each train as one with the whole.

    Attributes:
        counting: False while a forward pass is recomputed for the gradient: the average must not move then.
    """

    average: Tensor | None
    counting = True

    def __init__(self, kind: str = "regions", *, initial: float = 100.0, momentum: float = 0.9) -> None:
        """Make the normalizer.

        Args:
            kind: see the class.
            initial: first value of the moving average.
            momentum: weight of the past in the moving average, in [0, 1).

        Raises:
            ConfigError: unknown `kind`.
        """
        super().__init__()
        if kind not in NORMALIZERS:
            raise ConfigError(f"LOSS_NORMALIZER is {kind!r}; it must be one of {', '.join(NORMALIZERS)}")
        self.kind, self.momentum = kind, momentum
        start = torch.tensor(float(initial)) if kind == "foreground_average" else None
        self.register_buffer("average", start)

    @torch.no_grad()
    def forward(
        self, regions: int, foreground: Tensor, num_classes: int = 1
    ) -> tuple[Tensor | float, Tensor | float]:
        """Count a batch.

        Args:
            regions: number of regions of this process.
            foreground: scalar, number of foreground regions of this process.
            num_classes: K.

        Returns:
            Two numbers: the divisor of the classification losses, and that of the box loss.
        """
        if self.kind == "foreground_average":
            count = self._averaged(foreground)
        elif self.kind == "foreground":
            count = foreground.float().clamp(min=1)
        else:
            count = float(max(regions, 1))
        return (count * num_classes if self.kind == "elements" else count), count

    def _averaged(self, foreground: Tensor) -> Tensor:
        average = self.average
        assert average is not None
        processes = comm.get_world_size()
        if self.counting:
            count = foreground.to(average)
            if processes > 1:
                torch.distributed.all_reduce(count)
            average.mul_(self.momentum).add_(count.clamp(min=1), alpha=1 - self.momentum)
        return average / processes

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return self.kind
