"""Score thresholds of detections, one per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from longtail_det2.structures.multi_label import POSITIVE, MultiLabelTargets
from longtail_det2.utils.errors import ConfigError

from .losses import is_recomputed

ADAPTIVE_THRESHOLDS = ("per_class", "foreground", "shared")


def adaptive_thresholds(positives: Tensor, number: Tensor | int, kind: str = "per_class") -> Tensor:
    """Return the thresholds of sampling-free detectors (Chen et al., arXiv 1909.04868), (K,) in [0, 1].

    With n_j of N anchors or proposals positive for class j, and N_f = sum_j n_j:

        ``per_class``    n_j / N, the paper's: the share of foreground times the class's share of it
        ``foreground``   N_f / N for all, as in the code of 2020
        ``shared``       N_f / (N K) for all, as in the code of 2019

    Args:
        positives: (K,) n_j.
        number: N; the thresholds are 0 where it is 0.
        kind: one of the above.
    """
    shares = positives / torch.as_tensor(number, device=positives.device).clamp(min=1)
    if kind == "per_class":
        return shares
    return (shares.sum() if kind == "foreground" else shares.mean()).expand(len(shares))


class AdaptiveThresholds(nn.Module):
    """Thresholds that follow from the classes of the regions that a head was trained on.

    The counts are in a buffer that checkpoints and exported models have. Before training they are 0, and so
    are the thresholds.
    """

    counts: Tensor

    def __init__(self, num_classes: int, kind: str = "per_class") -> None:
        """Begin to count; `kind` as for :func:`adaptive_thresholds`.

        Raises:
            ConfigError: unknown `kind`.
        """
        super().__init__()
        if kind not in ADAPTIVE_THRESHOLDS:
            known = ", ".join(ADAPTIVE_THRESHOLDS)
            raise ConfigError(f"ADAPTIVE_THRESHOLD is {kind!r}; it must be empty or one of {known}")
        self.kind = kind
        self.register_buffer("counts", torch.zeros(num_classes + 1, dtype=torch.int64))

    @torch.no_grad()
    def update(self, positives: MultiLabelTargets, number: Tensor | int) -> None:
        """Count a training step: the targets of all foreground regions, and the number of all regions."""
        if not self.training or is_recomputed():
            return
        of_class = (positives.labels[:, :-1] == POSITIVE).sum(dim=0)
        counts = torch.cat([of_class, torch.as_tensor(number, device=of_class.device).view(1)])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(counts)
        self.counts += counts

    def forward(self) -> Tensor:
        """Return the thresholds, (K,) float32."""
        return adaptive_thresholds(self.counts[:-1], self.counts[-1], self.kind)


def make_adaptive(num_classes: int, kind: str) -> AdaptiveThresholds | None:
    """Return thresholds that begin to count, or None if `kind` is empty."""
    return AdaptiveThresholds(num_classes, kind) if kind else None


class ScoreThresholds(nn.Module):
    """Mixin: turns the attribute ``test_score_thresh`` of a Detectron2 class into a (K,) buffer.

    To be named before Detectron2's class among the bases, which sets ``num_classes`` first. Assigning a
    number fills the buffer, assigning K numbers sets a threshold per class, at any time. A detection of class
    k needs a score above threshold k.

    The buffer moves with the model and is not saved: like the NMS threshold it is a setting of a run, and
    Detectron2's checkpoints have no such key.

    Attributes:
        adaptive_thresholds: thresholds that a score has to exceed as well; None for no such ones.
    """

    num_classes: int
    score_thresholds: Tensor
    adaptive_thresholds: AdaptiveThresholds | None

    @property
    def test_score_thresh(self) -> Tensor:
        """(K,) float32."""
        if self.adaptive_thresholds is None:
            return self.score_thresholds
        return torch.maximum(self.score_thresholds, self.adaptive_thresholds())

    @test_score_thresh.setter
    def test_score_thresh(self, value: float | Sequence[float] | Tensor) -> None:
        if isinstance(value, (int, float)):
            thresholds = torch.full((self.num_classes,), float(value))
        else:
            thresholds = torch.tensor([float(one) for one in value])
        if thresholds.shape != (self.num_classes,):
            raise ConfigError(
                f"test_score_thresh has {len(thresholds)} values for {self.num_classes} classes; give one "
                "number, or one per class"
            )
        before = self._buffers.get("score_thresholds")
        if before is not None:
            thresholds = thresholds.to(before.device)
        self.register_buffer("score_thresholds", thresholds, persistent=False)
