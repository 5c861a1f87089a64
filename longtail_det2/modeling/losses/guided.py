"""Guided loss scaling: the classification losses of a head are scaled to the size of its box loss.

Chen et al., "Is Sampling Heuristics Necessary in Training Deep Object Detectors?" (arXiv 1909.04868): without
sampling or a focal loss, the background of all anchors or proposals would swamp the gradient; the box loss,
which only foreground has, says how large the classification loss should be. The scale is one number per batch
and head, without gradient: the direction of the classification gradient does not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.modeling.events import log_ratios, logging_due
from longtail_det2.utils.errors import ConfigError

from .base import is_recomputed

Losses = Mapping[str, Tensor]


class GuidedLossScaling(nn.Module):
    """Scale the classification losses by w = s L_box / L_cls, computed anew in each step.

    L_cls is the sum of the head's classification losses, L_box its box loss (the mean of its losses besides
    classification, where there are several, as in FCOS), both over all processes. So the sum of the scaled
    losses always equals s L_box, and what L_cls is divided by has no effect; what L_box is divided by has:
    by foreground ("foreground" of :class:`LossNormalizer`), as sampled regions are not counted here. Without
    foreground L_box is 0, and so is the gradient of that step.

    A head calls the module with its losses. The unscaled losses and w are logged below "guided/".
    """

    def __init__(self, scale: float = 1.0) -> None:
        """Set s, 1 for RPN and dense heads and 2 for RoI heads in the released code.

        Raises:
            ConfigError: `scale` is not positive.
        """
        super().__init__()
        if not scale > 0:
            raise ConfigError(f"GUIDED_SCALE is {scale}; it must be positive (0 in a config: not guided)")
        self.scale = scale

    def forward(self, classification: Losses, others: Losses) -> dict[str, Tensor]:
        """Return all losses by name, those of classification scaled.

        Args:
            classification: scalars by name, with their graph.
            others: the box loss, and further ones, scalars by name.
        """
        weight = self.weight(self.ratio(classification, others))
        if logging_due():
            logged = {f"guided/{name}": (value, 1) for name, value in classification.items()}
            log_ratios({**logged, f"guided/w_{next(iter(classification))}": (weight, 1)})
        return {**{name: value * weight for name, value in classification.items()}, **others}

    @torch.no_grad()
    def ratio(self, classification: Losses, others: Losses) -> Tensor:
        """Return L_box / L_cls over all processes, finite also where L_cls is 0."""
        totals = torch.stack(
            [torch.stack(list(classification.values())).sum(), torch.stack(list(others.values())).mean()]
        )
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(totals)
        return totals[1] / totals[0].clamp(min=1e-12)

    def weight(self, ratio: Tensor) -> Tensor:
        """Return w for this step's ratio."""
        return self.scale * ratio


class FrozenGuidedLossScaling(GuidedLossScaling):
    """The code of 2021 for dense detectors: the ratio is frozen, and the losses have learned weights.

    In the first `warmup` steps w follows the ratio, afterwards it stays what it was in the last of them. With
    the scaled classification loss l_0 and the others l_1, l_2, ... (boxes, centerness):

        total = sum_k l_k / (2 sigma_k^2) + log prod_k sigma_k        sigma_k learned, 1 before training

    The last term is ``loss_sigma``, and may be negative. Differences from the released code: steps without
    foreground do not count for the ratio, which would otherwise be frozen at 0 if the last one had none; what
    is learned is log sigma_k, since sigma_k itself may cross 0. Steps and ratio are in checkpoints.
    """

    steps: Tensor
    frozen: Tensor

    def __init__(self, num_losses: int = 2, *, warmup: int = 100, scale: float = 1.0) -> None:
        """Make the scaling.

        Args:
            num_losses: 1 for classification, and 1 for each other loss of the head.
            warmup: steps, at least 1.
            scale: s.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(scale)
        if warmup < 1:
            raise ConfigError(f"GUIDED_WARMUP is {warmup}; the ratio needs at least one step")
        self.warmup = warmup
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros(()))
        self.log_sigmas = nn.Parameter(torch.zeros(num_losses))

    def forward(self, classification: Losses, others: Losses) -> dict[str, Tensor]:
        """Return all losses by name, weighted, and ``loss_sigma``."""
        scaled = super().forward(classification, others)
        learned = 0.5 * torch.exp(-2.0 * self.log_sigmas)
        factors = dict(zip(others, learned[1:], strict=True))
        weighted = {name: value * factors.get(name, learned[0]) for name, value in scaled.items()}
        return {**weighted, "loss_sigma": self.log_sigmas.sum()}

    @torch.no_grad()
    def weight(self, ratio: Tensor) -> Tensor:
        """Return w for this step's ratio, which is followed during the warm-up."""
        if self.training and not is_recomputed():
            follows = (ratio > 0) & ((self.steps < self.warmup) | (self.frozen == 0))
            self.frozen.copy_(torch.where(follows, ratio, self.frozen))
            self.steps += 1
        return self.scale * self.frozen


def build_guided_loss(keys: CfgNode, num_losses: int = 2) -> GuidedLossScaling | None:
    """Return what ``GUIDED_SCALE`` and ``GUIDED_WARMUP`` of a head's node ask for; None for no scaling."""
    warmup = keys.get("GUIDED_WARMUP", 0)
    if not keys.GUIDED_SCALE:
        return None
    if warmup:
        return FrozenGuidedLossScaling(num_losses, warmup=warmup, scale=keys.GUIDED_SCALE)
    return GuidedLossScaling(keys.GUIDED_SCALE)
