"""Region proposal networks."""

from .rpn import NormalizedRPN

__all__ = ["NormalizedRPN"]
