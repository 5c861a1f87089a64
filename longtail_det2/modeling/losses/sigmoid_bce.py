"""Binary cross entropy of every class by itself: the multi-label baseline that knows a hierarchy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import IGNORED, POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY, ClassificationLoss
from .focal_sums import dense_focal_sum

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy


@CLASSIFICATION_LOSS_REGISTRY.register()
class SigmoidBCELoss(ClassificationLoss):
    """K independent yes-or-no questions a region.

    With truth y in {1, 0, -1} and weight w = [y != -1]:

        ``loss_cls`` = (1 / R) sum_r sum_k w_rk BCE(sigmoid(z_rk), [y_rk = 1])

    The hierarchy is in the truth already: ancestors of a label are positive, descendants of the most specific
    label ignored (the treatment of UniDet, Zhou et al. 2022). A background region is negative for all
    classes.

    Division is by the number R of sampled regions, ignored entries or not, as Detectron2's box loss and its
    own sigmoid loss divide: each region has the same weight, whatever the number of its labels or of the
    classes. So the loss is K times the mean that ``F.binary_cross_entropy_with_logits`` takes by default.
    """

    @configurable
    def __init__(self, *, prior_prob: float = 0.01) -> None:
        """Makes the loss.

        Args:
            prior_prob: score of every class before training, in (0, 1). Without it K negatives a region would
                make the first loss about K log 2 and the first steps useless (Lin et al. 2017, section 3.3).

        Raises:
            ConfigError: `prior_prob` is outside (0, 1).
        """
        super().__init__()
        if not 0.0 < prior_prob < 1.0:
            raise ConfigError(
                f"MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB is {prior_prob}; it must lie between 0 "
                "and 1"
            )
        self.prior_prob = prior_prob

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
    ) -> dict[str, Any]:
        """Reads ``MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE``."""
        return {"prior_prob": cfg.MODEL.CLASSIFICATION_LOSS.SIGMOID_BCE.PRIOR_PROB}

    def num_logits(self, num_classes: int) -> int:
        """K: background is the absence of all classes."""
        return num_classes

    def initial_bias(self, num_logits: int) -> Tensor:
        """log(p / (1 - p)) for every class."""
        return torch.full((num_logits,), math.log(self.prior_prob / (1.0 - self.prior_prob)))

    def activation(self, logits: Tensor) -> Tensor:
        """Sigmoid of each logit, and 0 for background; rows do not sum to 1."""
        return F.pad(at_least_float32(logits).sigmoid(), (0, 1))

    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """See the class and the contract; the one key is ``loss_cls``."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            truth = targets.labels[:, : targets.num_classes]
            positive = (truth == POSITIVE).to(logits.dtype)
            weight = (truth != IGNORED).to(logits.dtype)
            total = F.binary_cross_entropy_with_logits(logits, positive, weight, reduction="sum")
            return {"loss_cls": total / max(len(targets), 1)}

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """The sum of w BCE over anchors and classes, divided by `normalizer`, as ``loss_cls``.

        That the many easy background anchors do not drown the rest is left to the bias, which makes them
        nearly free of loss from the start.
        """
        with torch.autocast(logits.device.type, enabled=False):
            total = dense_focal_sum(at_least_float32(logits), targets, alpha=-1.0, gamma=0.0)
            return {"loss_cls": total / normalizer}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"prior_prob={self.prior_prob}"
