"""Seesaw loss, with the counts of the classes that it has seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import at_least_float32, multi_label_seesaw_loss, seesaw_loss
from longtail_det2.structures.dense_targets import DenseTargets
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import CLASSIFICATION_LOSS_REGISTRY
from .focal_sums import focal_sum
from .held_rates import HoldsRates, RatesSource
from .rates_of_run import RatesOfRun

if TYPE_CHECKING:
    from longtail_det2.data.hierarchy import LabelHierarchy

NODE = "MODEL.CLASSIFICATION_LOSS.SEESAW"
"""Of the config."""

LABELS = ("all", "most_specific")
REDUCTIONS = ("regions", "mean")
SCORES = ("softmax", "concurrent")


@CLASSIFICATION_LOSS_REGISTRY.register()
class SeesawLoss(HoldsRates):
    """Seesaw loss (Wang et al. 2021) with a classifier of its own for foreground and background.

    The K + 2 logits are those of the classes, of foreground and of background. With L_r of
    :func:`seesaw_loss` over the K classes and R' regions of class >= 0 (the others are left out):

        ``loss_cls`` = (1 / R') sum over foreground regions of L_r
        ``loss_objectness`` = (1 / R') sum_r cross entropy of (foreground, background)
        scores = softmax(class logits) P(foreground), and P(background)

    With the reduction "mean" ``loss_cls`` is the mean over the foreground regions alone, about four times as
    much where a quarter of the regions is foreground (without objectness there is no difference). With
    p = q = 0 L_r is cross entropy over the classes.

    Without `objectness` there are K + 1 logits, background being one class more, which neither relieves
    others nor is relieved: with p = q = 0 it is :class:`SoftmaxCrossEntropyLoss`.

    **Counts.** N_j in L_r counts the sampled regions of class j since training began, those of the step
    included; a region that is handed to the loss twice counts twice, as repeated images are meant to. They
    are integers in a buffer, which checkpoints keep, and are summed over all ranks in every step; each stage
    of a cascade, having its own loss, has its own. They change in training steps only: not in evaluation
    mode, not without gradients, and not when activations are computed again for the gradient
    (:attr:`counting`).

    **Several labels.** With `labels` "all" L_r is :func:`multi_label_seesaw_loss` over the positive labels of
    a region, ancestors too, each of which is counted, and ignored labels are left out. Where objects have one
    label it is the published loss, but the number of positive labels is read from the device. "most_specific"
    takes the one label of each region, all other classes being negatives, and reads nothing.

    Labels that do not suppress each other in training rise together, and a softmax then splits the score
    among them. With the scores "concurrent" the softmax over the classes is therefore
    :func:`concurrent_softmax_scores`, in which classes that occur together do not suppress each other either;
    their rates are kept as in :class:`HoldsRates`. Where every rate is 0, as with one label an object, it is
    softmax.

    **Dense heads.** Nearly all anchors are background, so the objectness is a focal loss there, of the
    probability of foreground (Lin et al. 2017, equation 5), beginning at `prior_prob`; the classes' loss is
    that of the positive anchors, and both sums are divided by the detector's normaliser. Anchors that are
    positive are what is counted. Scores are as above. Without `objectness` the background is one class more,
    as in :class:`SoftmaxCrossEntropyLoss`.
    """

    class_counts: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        objectness: bool = True,
        labels: str = "all",
        reduction: str = "regions",
        sync_counts: bool = True,
        scores: str = "softmax",
        rates: RatesSource = None,
        direction: str = "given_row",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_prob: float = 0.01,
    ) -> None:
        """Makes the loss; nothing has been counted.

        Args:
            num_classes: K.
            p: strength of the mitigation, not negative; 0 turns it off.
            q: strength of the compensation, not negative; 0 turns it off.
            eps: least score of the true class in the compensation, in (0, 1].
            objectness: foreground and background have logits of their own.
            labels: "all" or "most_specific".
            reduction: "regions" or "mean".
            sync_counts: sum the counts over ranks; without, each rank goes by its own, and a checkpoint has
                those of the first.
            scores: "softmax" or "concurrent".
            rates: for the latter, see :meth:`HoldsRates.hold_rates`; else not looked at.
            direction: see there.
            focal_alpha: of the objectness in a dense head, see :class:`SigmoidFocalLoss`.
            focal_gamma: likewise.
            prior_prob: probability of foreground before training, in a dense head.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__()
        _check_ranges(
            num_classes=num_classes, p=p, q=q, eps=eps, focal_gamma=focal_gamma, prior_prob=prior_prob
        )
        for key, value, known in (
            ("LABELS", labels, LABELS),
            ("REDUCTION", reduction, REDUCTIONS),
            ("SCORES", scores, SCORES),
        ):
            if value not in known:
                raise ConfigError(f"{NODE}.{key} is {value!r}; it must be one of {', '.join(known)}")
        self.num_classes, self.p, self.q, self.eps = num_classes, float(p), float(q), float(eps)
        self.objectness, self.labels, self.reduction = objectness, labels, reduction
        self.sync_counts, self.scores = sync_counts, scores
        self.focal_alpha, self.focal_gamma, self.prior_prob = focal_alpha, focal_gamma, prior_prob
        self.register_buffer("class_counts", torch.zeros(num_classes + 1, dtype=torch.int64))
        if scores == "concurrent":
            self.hold_rates(num_classes, rates, direction)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, num_classes: int, hierarchy: LabelHierarchy | None = None
    ) -> dict[str, Any]:
        """Reads ``SEESAW`` and, for the rates, ``CONCURRENT_SOFTMAX`` of ``MODEL.CLASSIFICATION_LOSS``.

        For dense heads, also keys of ``MODEL.RETINANET``.
        """
        keys, dense = cfg.MODEL.CLASSIFICATION_LOSS.SEESAW, cfg.MODEL.RETINANET
        concurrent = cfg.MODEL.CLASSIFICATION_LOSS.CONCURRENT_SOFTMAX
        return {
            "num_classes": num_classes,
            "p": keys.P,
            "q": keys.Q,
            "eps": keys.EPS,
            "objectness": keys.OBJECTNESS,
            "labels": keys.LABELS,
            "reduction": keys.REDUCTION,
            "sync_counts": keys.SYNC_COUNTS,
            "scores": keys.SCORES,
            "rates": RatesOfRun(tuple(cfg.DATASETS.TRAIN), concurrent.RATES_FILE),
            "direction": concurrent.DIRECTION,
            "focal_alpha": dense.FOCAL_LOSS_ALPHA,
            "focal_gamma": dense.FOCAL_LOSS_GAMMA,
            "prior_prob": dense.PRIOR_PROB,
        }

    def num_logits(self, num_classes: int) -> int:
        """K + 2 with objectness, else K + 1.

        Raises:
            ConfigError: the loss counts another number of classes.
        """
        if num_classes != self.num_classes:
            raise ConfigError(
                f"SeesawLoss was made for {self.num_classes} classes, but the classifier has {num_classes}"
            )
        return num_classes + 1 + self.objectness

    def activation(self, logits: Tensor) -> Tensor:
        """See the class and the contract; a row sums to 1, with concurrent scores to at least 1."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            if not self.objectness:
                return self._competition(logits)
            presence = F.softmax(logits[:, self.num_classes :], dim=1)
            classes = self._competition(logits[:, : self.num_classes])
            return torch.cat([classes * presence[:, :1], presence[:, 1:]], dim=1)

    def _competition(self, logits: Tensor) -> Tensor:
        return F.softmax(logits, dim=1) if self.scores == "softmax" else self.concurrent_scores(logits)

    def forward(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """See the class and the contract; ``loss_objectness`` is there only with `objectness`."""
        if self.scores == "concurrent":
            self.find_rates()
        with torch.autocast(logits.device.type, enabled=False):
            if self._is_counting():
                self._count(targets.classes, targets.labels)
            logits, known = at_least_float32(logits), targets.classes >= 0
            regions = known.sum().clamp(min=1)
            foreground = known & (targets.classes < self.num_classes)
            losses = self._class_losses(logits, targets.classes, targets.labels)
            if not self.objectness:
                return {"loss_cls": losses.sum() / regions}
            counted = regions if self.reduction == "regions" else foreground.sum().clamp(min=1)
            presence = F.cross_entropy(
                logits[:, self.num_classes :], (~foreground).to(torch.int64), reduction="none"
            )
            return {
                "loss_cls": losses.sum() / counted,
                "loss_objectness": (presence * known).sum() / regions,
            }

    def dense_loss(self, logits: Tensor, targets: DenseTargets, normalizer: Tensor) -> dict[str, Tensor]:
        """See the class and the contract; keys as of :meth:`forward`."""
        if self.scores == "concurrent":
            self.find_rates()
        with torch.autocast(logits.device.type, enabled=False):
            logits, chosen = at_least_float32(logits), targets.classes[targets.rows]
            labels = F.pad(targets.labels, (0, 1))
            if self._is_counting():
                self._count(chosen, labels)
            classes = self._class_losses(logits[targets.rows], chosen, labels).sum()
            background = targets.classes == self.num_classes
            if not self.objectness:
                others = torch.where(background, targets.classes, -1)
                total = F.cross_entropy(logits, others, ignore_index=-1, reduction="sum")
                return {"loss_cls": (classes + total) / normalizer}
            presence = logits[:, self.num_classes] - logits[:, self.num_classes + 1]
            truth = torch.where(background, 0, torch.where(targets.classes >= 0, 1, -1))
            total = focal_sum(presence, truth, alpha=self.focal_alpha, gamma=self.focal_gamma)
            return {"loss_cls": classes / normalizer, "loss_objectness": total / normalizer}

    def dense_bias(self, num_logits: int) -> Tensor:
        """Foreground has the probability `prior_prob`, and the classes share it equally."""
        bias = torch.zeros(num_logits)
        shares = 1 if self.objectness else num_logits - 1
        bias[-1] = math.log(shares * (1.0 - self.prior_prob) / self.prior_prob)
        return bias

    def _class_losses(self, logits: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
        """(R,) of L_r; 0 for regions without a class, and with objectness for background."""
        width = self.num_classes if self.objectness else self.num_classes + 1
        counts, options = self.class_counts[: self.num_classes], (self.p, self.q, self.eps)
        if self.labels == "most_specific":
            return seesaw_loss(logits[:, :width], classes, counts, *options)
        labels = torch.where((classes >= 0)[:, None], labels, 0)
        return multi_label_seesaw_loss(logits[:, :width], labels[:, :width], counts, *options)

    def _is_counting(self) -> bool:
        return self.training and self.counting and torch.is_grad_enabled()

    @torch.no_grad()
    def _count(self, classes: Tensor, labels: Tensor) -> None:
        """Takes a training step's regions, of all ranks, into the counts."""
        known = classes >= 0
        if self.labels == "all":
            found = ((labels == POSITIVE) & known[:, None]).sum(dim=0)
        else:  # not bincount, which on CUDA waits for the device; ignored regions add 0 to background
            found = torch.zeros_like(self.class_counts)
            found.index_add_(0, torch.where(known, classes, self.num_classes), known.to(torch.int64))
        if self.sync_counts and comm.get_world_size() > 1:
            torch.distributed.all_reduce(found)
        self.class_counts += found

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"num_classes={self.num_classes}, p={self.p}, q={self.q}, objectness={self.objectness}, "
            f"labels={self.labels}, reduction={self.reduction}, scores={self.scores}"
        )


def _check_ranges(
    *, num_classes: int, p: float, q: float, eps: float, focal_gamma: float, prior_prob: float
) -> None:
    if num_classes < 1:
        raise ConfigError(f"the loss needs at least one class, got num_classes={num_classes}")
    for key, value in (("P", p), ("Q", q)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{NODE}.{key} is {value}; it must be a number that is not negative")
    if not 0 < eps <= 1:
        raise ConfigError(f"{NODE}.EPS is {eps}; it must lie in (0, 1]")
    if not (focal_gamma >= 0 and 0 < prior_prob < 1):
        raise ConfigError(
            "the objectness of dense heads needs MODEL.RETINANET.FOCAL_LOSS_GAMMA >= 0 and PRIOR_PROB "
            f"between 0 and 1, got {focal_gamma} and {prior_prob}"
        )
