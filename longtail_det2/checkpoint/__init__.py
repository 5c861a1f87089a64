"""Checkpoints that know their classes, are never half-written and never run code."""

from .checkpointer import ClassAwareCheckpointer, PeriodicCheckpoints
from .files import CheckpointError

__all__ = ["CheckpointError", "ClassAwareCheckpointer", "PeriodicCheckpoints"]
