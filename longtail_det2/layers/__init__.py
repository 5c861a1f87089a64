"""Pure functions on tensors; what keeps state, and heads and losses made of them, is in `modeling`."""

from .concurrent_softmax import (
    concurrent_softmax_loss,
    concurrent_softmax_scores,
    multi_label_softmax_loss,
)

__all__ = ["concurrent_softmax_loss", "concurrent_softmax_scores", "multi_label_softmax_loss"]
