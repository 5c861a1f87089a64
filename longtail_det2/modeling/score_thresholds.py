"""Score thresholds of detections, one per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longtail_det2.utils.errors import ConfigError


class ScoreThresholds(nn.Module):
    """Mixin: turns the attribute ``test_score_thresh`` of a Detectron2 class into a (K,) buffer.

    To be named before Detectron2's class among the bases, which sets ``num_classes`` first. Assigning a
    number fills the buffer, assigning K numbers sets a threshold per class, at any time. A detection of class
    k needs a score above threshold k.

    The buffer moves with the model and is not saved: like the NMS threshold it is a setting of a run, and
    Detectron2's checkpoints have no such key. A method that measures thresholds should register its own
    persistent buffer and assign it.
    """

    num_classes: int
    score_thresholds: Tensor

    @property
    def test_score_thresh(self) -> Tensor:
        """(K,) float32."""
        return self.score_thresholds

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
