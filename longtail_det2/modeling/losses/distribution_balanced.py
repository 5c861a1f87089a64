"""Distribution-Balanced loss, with the image counts of the training data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from longtail_det2.data.statistics import ClassStatistics
from longtail_det2.layers import (
    FocalBackground,
    distribution_balanced_loss,
    negative_tolerant_bias,
    rebalanced_weights,
)
from longtail_det2.structures.multi_label import IGNORED, POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .build import CLASSIFICATION_LOSS_REGISTRY
from .sigmoid import SigmoidBCELoss

WEIGHTINGS = ("rebalance", "none", "inverse", "sqrt_inverse", "class_balanced")
BIASES = ("released", "paper")


@CLASSIFICATION_LOSS_REGISTRY.register()
class DistributionBalancedLoss(SigmoidBCELoss):
    """Distribution-Balanced loss (Wu et al. 2020): K binary classifications with balanced weights.

    With w = [y != -1] and L of :func:`distribution_balanced_loss`:

        ``loss_cls`` = sum_k w_k L_k

    The published loss is the mean over rows and classes: set LOSS_NORMALIZER to "elements". The scores are
    the plain sigmoids of the logits, without the class bias, as in the released code. The weights are made
    for images drawn by class (DATALOADER.SAMPLER_TRAIN "ClassAwareTrainingSampler").

    Rows of a detector are regions: r' comes from a region's own labels and the counts of images that have
    them. A region without labels, such as background, has the weight 1 + alpha for every class. Ignored
    labels have no loss and no part in the weights.

    ====================  =========================================================================
    ``gamma`` = 0         without the focal form (DB-0FL in later papers)
    ``kappa`` = 0,        without negative-tolerant regularisation (R-BCE, with the focal form
    ``negative_scale`` 1  R-BCE-Focal)
    ``weighting`` "none"  without weights (NTR); "inverse", "sqrt_inverse" and "class_balanced" are
                          N / n, sqrt(N / n) and (1 - cb_beta) / (1 - cb_beta^n) (Cui et al. 2019)
    ====================  =========================================================================

    Without any of the three it is :class:`SigmoidBCELoss`.
    """

    config_node = "DISTRIBUTION_BALANCED"

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        image_counts: np.ndarray | Tensor | None = None,
        num_images: int | Tensor | None = None,
        ancestors: np.ndarray | Tensor | None = None,
        weighting: str = "rebalance",
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        cb_beta: float = 0.9,
        count_ancestors: bool = True,
        negative_scale: float = 2.0,
        kappa: float = 0.05,
        bias_form: str = "released",
        gamma: float = 2.0,
        balance: float = 2.0,
        prior_prob: float = 0.01,
    ) -> None:
        """Make the loss; L = K. The defaults are the authors' for COCO-MLT.

        Args:
            num_classes: K.
            image_counts: (K,) training images of each class. None: loaded weights must bring them.
            num_images: of the training data; given with `image_counts`.
            ancestors: (K, K), [i, j] is true where j is a proper ancestor of i; read where `count_ancestors`
                is False.
            weighting: "rebalance", "none", "inverse", "sqrt_inverse" or "class_balanced"; see the class.
            alpha: least re-balanced weight; the largest is 1 + `alpha`. Not negative.
            beta: steepness of the weights, not negative.
            mu: ratio of rates whose weight is in the middle.
            cb_beta: of "class_balanced", in [0, 1).
            count_ancestors: a region can be drawn by the ancestors of its labels too. False: by its most
                specific labels only, which then weigh more. Without a hierarchy both are the same.
            negative_scale: the paper's lambda, positive.
            kappa: strength of the class bias, not negative.
            bias_form: "released", divided by lambda, or "paper".
            gamma: exponent of the focal form, not negative; 0: without it.
            balance: factor of the focal form, positive.
            prior_prob: see :class:`SigmoidBCELoss`.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(num_classes=num_classes, prior_prob=prior_prob)
        positive, nonnegative = "a positive number", "a number that is not negative"
        for key, value, right, wanted in (
            ("WEIGHTING", weighting, weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            ("ALPHA", alpha, 0 <= alpha < math.inf, nonnegative),
            ("BETA", beta, 0 <= beta < math.inf, nonnegative),
            ("MU", mu, math.isfinite(mu), "a number"),
            ("CB_BETA", cb_beta, 0 <= cb_beta < 1, "in [0, 1)"),
            ("NEGATIVE_SCALE", negative_scale, 0 < negative_scale < math.inf, positive),
            ("KAPPA", kappa, 0 <= kappa < math.inf, nonnegative),
            ("BIAS_FORM", bias_form, bias_form in BIASES, f"one of {', '.join(BIASES)}"),
            ("GAMMA", gamma, 0 <= gamma < math.inf, nonnegative),
            ("BALANCE", balance, 0 < balance < math.inf, positive),
        ):
            if not right:
                node = f"MODEL.CLASSIFICATION_LOSS.{self.config_node}"
                raise ConfigError(f"{node}.{key} is {value!r}; it must be {wanted}")
        if (image_counts is None) != (num_images is None):
            raise ConfigError("DistributionBalancedLoss needs image_counts and num_images, not one of them")
        self.weighting, self.alpha, self.beta, self.mu = weighting, float(alpha), float(beta), float(mu)
        self.cb_beta, self.count_ancestors = float(cb_beta), bool(count_ancestors)
        self.negative_scale, self.kappa, self.bias_form = float(negative_scale), float(kappa), bias_form
        self.gamma, self.balance = float(gamma), float(balance)
        total = None if num_images is None else torch.as_tensor(num_images)
        self.hold("num_images", total, ())
        at_most = math.inf if total is None else float(total)
        self.hold("image_counts", image_counts, (num_classes,), at_most=at_most)
        if not self.count_ancestors:
            self.hold("ancestors", ancestors, (num_classes, num_classes), at_most=1.0)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, statistics: ClassStatistics | None
    ) -> dict[str, Any]:
        """Read ``DISTRIBUTION_BALANCED`` of ``MODEL.CLASSIFICATION_LOSS`` and the statistics."""
        arguments = super().from_config(cfg, num_classes, statistics)
        if statistics is None:
            return arguments
        arguments.update(image_counts=statistics.image_counts, num_images=statistics.num_images)
        if not arguments["count_ancestors"]:
            hierarchy = statistics.hierarchy
            flat = np.zeros((num_classes, num_classes), bool)
            arguments["ancestors"] = flat if hierarchy is None else hierarchy.ancestors
        return arguments

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls``; see the class. Raises ConfigError without image counts."""
        logits, labels = self.checked(logits, targets), targets.labels[:, :-1]
        positive = labels == POSITIVE
        if self.weighting == "rebalance":
            counts, drawn_by = self._counts(logits.dtype), positive
            if not self.count_ancestors:
                implied = positive.to(logits.dtype) @ self.held("ancestors").to(logits.dtype) > 0
                drawn_by = positive & ~implied
            weights = rebalanced_weights(drawn_by, counts, self.alpha, self.beta, self.mu)
        else:
            weights = self._class_weights(logits.dtype)
        losses = self._entries(logits, positive, weights)
        return {"loss_cls": losses.masked_fill(labels == IGNORED, 0).sum(dim=1)}

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute ``loss_cls`` of rows that are all background; raises ConfigError without image counts."""
        logits = self.checked(logits)
        weights = self._background_weights(logits.dtype)
        return {"loss_cls": self._entries(logits, None, weights).sum(dim=1)}

    def focal_background(self) -> FocalBackground:
        """Return the loss of background as numbers; raises ConfigError without image counts."""
        weights = self._background_weights(torch.float32)
        factor = self.balance if self.gamma > 0 else 1.0
        per_class = isinstance(weights, Tensor)
        return FocalBackground(
            self.gamma,
            factor if per_class else factor * weights,
            self.negative_scale,
            weights if per_class else None,
            self._class_bias(torch.float32),
        )

    def _counts(self, dtype: torch.dtype) -> Tensor:
        return self.held("image_counts").to(dtype)

    def _background_weights(self, dtype: torch.dtype) -> Tensor | float:
        return 1.0 + self.alpha if self.weighting == "rebalance" else self._class_weights(dtype)

    def _class_weights(self, dtype: torch.dtype) -> Tensor | float:
        """(K,) weights that are the same in all rows; classes without images count as in one."""
        if self.weighting == "none":
            return 1.0
        counts = self._counts(dtype).clamp(min=1)
        if self.weighting == "class_balanced":
            return (1 - self.cb_beta) / (1 - self.cb_beta**counts)
        shares = self.held("num_images").to(dtype) / counts
        return shares if self.weighting == "inverse" else shares.sqrt()

    def _class_bias(self, dtype: torch.dtype) -> Tensor:
        divisor = self.negative_scale if self.bias_form == "released" else 1.0
        total = self.held("num_images").to(dtype)
        return negative_tolerant_bias(self._counts(dtype), total, self.kappa, divisor)

    def _entries(self, logits: Tensor, positive: Tensor | None, weights: Tensor | float) -> Tensor:
        options = (self.negative_scale, self.gamma, self.balance)
        return distribution_balanced_loss(logits, positive, weights, self._class_bias(logits.dtype), *options)
