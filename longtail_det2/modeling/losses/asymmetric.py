"""Asymmetric loss: positives and negatives are focused differently, easy negatives cost nothing."""

from __future__ import annotations

import math

from detectron2.config import configurable
from torch import Tensor

from longtail_det2.layers import asymmetric_loss
from longtail_det2.structures.multi_label import IGNORED, POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .build import CLASSIFICATION_LOSS_REGISTRY
from .sigmoid import SigmoidBCELoss


@CLASSIFICATION_LOSS_REGISTRY.register()
class AsymmetricLoss(SigmoidBCELoss):
    """Asymmetric loss (Ridnik et al. 2021) over K binary classifications per row.

    ``loss_cls`` is the sum over the classes of :func:`asymmetric_loss`, without ignored entries. Negatives
    with scores up to the margin have no loss, which forgives missing labels. With both exponents and the
    margin 0 it is :class:`SigmoidBCELoss`.

    The defaults are those of the authors' training script, which detaches the powers besides; without
    arguments, the loss in their code has `gamma_positive` 1.
    """

    config_node = "ASYMMETRIC"

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        detach_focus: bool = False,
        prior_prob: float = 0.01,
    ) -> None:
        """Make the loss; L = K.

        Args:
            num_classes: K.
            gamma_positive: exponent of positives, not negative.
            gamma_negative: exponent of negatives, not negative.
            margin: subtracted from the scores of negatives, in [0, 1). With a `prior_prob` below it,
                background has no loss until a score exceeds it.
            detach_focus: the powers are constants in the gradient, as in the published results; False: the
                gradient is that of the loss.
            prior_prob: see :class:`SigmoidBCELoss`.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(num_classes=num_classes, prior_prob=prior_prob)
        for key, value, at_most in (
            ("GAMMA_POSITIVE", gamma_positive, math.inf),
            ("GAMMA_NEGATIVE", gamma_negative, math.inf),
            ("MARGIN", margin, 1),
        ):
            if not 0 <= value < at_most:
                node = f"MODEL.CLASSIFICATION_LOSS.{self.config_node}"
                raise ConfigError(f"{node}.{key} is {value!r}; it must be in [0, {at_most})")
        self.gamma_positive, self.gamma_negative = float(gamma_positive), float(gamma_negative)
        self.margin, self.detach_focus = float(margin), bool(detach_focus)

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls``; see the class."""
        logits, labels = self.checked(logits, targets), targets.labels[:, :-1]
        losses = self._entries(logits, labels == POSITIVE)
        return {"loss_cls": losses.masked_fill(labels == IGNORED, 0).sum(dim=1)}

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_cls`` of rows that are all background."""
        return {"loss_cls": self._entries(self.checked(logits), None).sum(dim=1)}

    def _entries(self, logits: Tensor, positive: Tensor | None) -> Tensor:
        options = (self.gamma_positive, self.gamma_negative, self.margin, self.detach_focus)
        return asymmetric_loss(logits, positive, *options)
