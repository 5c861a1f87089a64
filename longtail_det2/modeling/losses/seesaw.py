"""Seesaw loss, with the counts of the classes that it has seen."""

from __future__ import annotations

import math

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from longtail_det2.layers import multi_label_seesaw_loss, seesaw_loss
from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .base import ClassificationLoss, class_priors
from .build import CLASSIFICATION_LOSS_REGISTRY

LABELS = ("auto", "all", "most_specific")


@CLASSIFICATION_LOSS_REGISTRY.register()
class SeesawLoss(ClassificationLoss):
    """Seesaw loss (Wang et al. 2021) with a separate binary classifier for foreground and background.

    The K + 2 logits are those of the classes, of foreground and of background. With L_r of
    :func:`seesaw_loss` over the K classes:

        ``loss_cls`` = L_r for foreground rows, 0 for background
        ``loss_objectness`` = cross entropy of (foreground, background)
        scores = softmax(class logits) P(foreground), and P(background)

    Both are divided by the number of sampled proposals (normalizer "regions"), as in the released code. With
    p = q = 0 L_r is cross entropy over the classes. Without `objectness` there are K + 1 logits, background
    being one more class that neither relieves others nor is relieved.

    **Counts.** N_j in L_r counts the sampled rows of class j since training began, those of the current step
    included; repeated images count repeatedly. They are integers in a buffer, summed over all processes.

    **Several labels.** With `labels` "all" L_r is :func:`multi_label_seesaw_loss` over the positive labels of
    a row, ancestors too, each of which is counted, and ignored labels are left out. Where objects have one
    label it is the published loss, but the number of positive labels is read from the device.
    "most_specific" takes the one label of each row, all other classes being negatives, and reads nothing.
    """

    config_node = "SEESAW"
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
    ) -> None:
        """Make the loss with counts of 0.

        Args:
            num_classes: K.
            p: strength of the mitigation, not negative; 0 turns it off.
            q: strength of the compensation, not negative; 0 turns it off.
            eps: lower bound of the true class' score in the compensation, in (0, 1].
            objectness: foreground and background have logits of their own.
            labels: "all", "most_specific", or "auto", which setup replaces by what fits the training data and
                which means "all" without it.

        Raises:
            ConfigError: a value is outside its range.
        """
        super().__init__(num_classes, num_classes + 1 + bool(objectness))
        for key, value, right, wanted in (
            ("P", p, 0 <= p < math.inf, "a number that is not negative"),
            ("Q", q, 0 <= q < math.inf, "a number that is not negative"),
            ("EPS", eps, 0 < eps <= 1, "in (0, 1]"),
            ("LABELS", labels, labels in LABELS, f"one of {', '.join(LABELS)}"),
        ):
            if not right:
                raise ConfigError(f"MODEL.CLASSIFICATION_LOSS.SEESAW.{key} is {value!r}; it must be {wanted}")
        self.p, self.q, self.eps = float(p), float(q), float(eps)
        self.objectness, self.labels = bool(objectness), labels
        self.register_buffer("class_counts", torch.zeros(num_classes + 1, dtype=torch.int64))

    def scores(self, logits: Tensor) -> Tensor:
        """Scores of the classes and of background; a row sums to 1."""
        logits = self.checked(logits)
        if not self.objectness:
            return self.class_scores(logits)
        presence = F.softmax(logits[:, self.num_classes :], dim=1)
        classes = self.class_scores(logits[:, : self.num_classes])
        return torch.cat([classes * presence[:, :1], presence[:, 1:]], dim=1)

    def class_scores(self, logits: Tensor) -> Tensor:
        """Softmax over the logits (R, K) of the classes, (R, K + 1) without objectness."""
        return F.softmax(logits, dim=1)

    def unreduced(self, logits: Tensor, targets: MultiLabelTargets) -> dict[str, Tensor]:
        """Compute ``loss_cls`` and, with `objectness`, ``loss_objectness``; see the class."""
        logits = self.checked(logits, targets)
        width = self.num_classes if self.objectness else self.num_classes + 1
        counts = self.class_counts[: self.num_classes]
        options = (self.p, self.q, self.eps, not self.objectness)
        known = targets.known
        if self.labels == "most_specific":
            classes = seesaw_loss(logits[:, :width], targets.classes, counts, *options)
        else:
            labels = torch.where(known[:, None], targets.labels, 0)[:, :width]
            classes = multi_label_seesaw_loss(logits[:, :width], labels, counts, *options)
        if not self.objectness:
            return {"loss_cls": classes}
        presence = self.objectness_loss(logits[:, self.num_classes :], targets.foreground)
        return {"loss_cls": classes, "loss_objectness": torch.where(known, presence, 0)}

    def background(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute the losses of rows that are all background."""
        logits = self.checked(logits)
        nothing = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if not self.objectness:
            return {"loss_cls": F.cross_entropy(logits, nothing + self.num_classes, reduction="none")}
        presence = self.objectness_loss(logits[:, self.num_classes :], nothing)
        return {"loss_cls": torch.zeros_like(presence), "loss_objectness": presence}

    def objectness_loss(self, logits: Tensor, foreground: Tensor) -> Tensor:
        """(R,) cross entropy of logits (R, 2) of foreground and background."""
        return F.cross_entropy(logits, (~foreground).to(torch.int64), reduction="none")

    def bias(self, prior: float | Tensor | None = None) -> Tensor | None:
        """Log-probabilities of the prior, relative to foreground or the most frequent class."""
        if prior is None:
            return None
        priors = class_priors(prior, self.num_classes, shared=True)
        classes, absent = (priors / priors.max()).log(), 1 - priors.sum()
        if not self.objectness:
            return torch.cat([classes, (absent / priors.max()).log()[None]]).float()
        presence = torch.stack([torch.zeros_like(absent), (absent / priors.sum()).log()])
        return torch.cat([classes, presence]).float()

    @torch.no_grad()
    def update(self, targets: MultiLabelTargets) -> None:
        """Add a training step's rows, of all processes, to the counts."""
        if self.labels == "all":
            found = ((targets.labels == POSITIVE) & targets.known[:, None]).sum(dim=0)
        else:  # not bincount, which on CUDA waits for the device; ignored rows add 0 to background
            known, found = targets.known, torch.zeros_like(self.class_counts)
            rows = torch.where(known, targets.classes, self.num_classes)
            found.index_add_(0, rows, known.to(torch.int64))
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(found)
        self.class_counts += found
