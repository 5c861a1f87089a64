"""Multi-focal modifier loss: the asymmetric loss, the more of it the rarer the class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import asymmetric_loss
from longtail_det2.utils.errors import ConfigError

from .asymmetric import AsymmetricLoss
from .build import CLASSIFICATION_LOSS_REGISTRY


@CLASSIFICATION_LOSS_REGISTRY.register()
class MultiFocalModifierLoss(AsymmetricLoss):
    """Multi-focal modifier loss (MFM) of COMIC (Zhang et al., ICCV 2023): K binary classifications per row.

    With n_k the training images of class k, their largest number n, and A the entries of
    :func:`asymmetric_loss`, whose exponent of negatives now depends on the class:

        v_k = (1 + log(n / n_k))^power

        ``loss_cls`` = sum_k v_k A(z_k; gamma_positive, gamma_negative + v_k, margin)

    without ignored entries. Rare classes weigh more, and their easy negatives less. v is 1 for the most
    frequent class, and for all with `power` 0 or equal counts: then it is :class:`AsymmetricLoss` with
    `gamma_negative` + 1. A class without images counts as in one.

    This is the multi-grained form of the released code, with its defaults; it was not compared with the
    paper's equations. COMIC's own training uses another form of that code: `gamma_negative` 3, `power` 1/3,
    and factors for classes that occur together, which are left out here. The code sums over rows and classes;
    here the head's LOSS_NORMALIZER divides that sum.
    """

    config_node = "MULTI_FOCAL"

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        image_counts: np.ndarray | Tensor | None = None,
        power: float = 1 / 6,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        detach_focus: bool = True,
        prior_prob: float = 0.01,
    ) -> None:
        """Make the loss; L = K.

        Args:
            num_classes: K.
            image_counts: (K,) training images of each class. None: loaded weights must bring them.
            power: of the class factor v, not negative.
            gamma_positive: see :class:`AsymmetricLoss`.
            gamma_negative: exponent of negatives beside v, not negative.
            margin: see :class:`AsymmetricLoss`.
            detach_focus: see :class:`AsymmetricLoss`.
            prior_prob: see :class:`SigmoidBCELoss`.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(
            num_classes=num_classes,
            gamma_positive=gamma_positive,
            gamma_negative=gamma_negative,
            margin=margin,
            detach_focus=detach_focus,
            prior_prob=prior_prob,
        )
        if not 0 <= power < math.inf:
            key = f"MODEL.CLASSIFICATION_LOSS.{self.config_node}.POWER"
            raise ConfigError(f"{key} is {power!r}; it must be a number that is not negative")
        self.power = float(power)
        self.hold("image_counts", image_counts, (num_classes,))

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``MULTI_FOCAL`` of ``MODEL.CLASSIFICATION_LOSS`` and the image counts."""
        arguments = super().from_config(cfg, num_classes, statistics)
        return arguments | {"image_counts": None if statistics is None else statistics.image_counts}

    def _entries(self, logits: Tensor, positive: Tensor | None) -> Tensor:
        counts = self.held("image_counts").to(logits.dtype).clamp(min=1)
        factor = (1 + (counts.max() / counts).log()) ** self.power
        options = (self.gamma_positive, self.gamma_negative + factor, self.margin, self.detach_focus)
        return factor * asymmetric_loss(logits, positive, *options)
