"""Checkpoints that know their classes, are never half-written and never run code."""

from .checkpointer import ClassAwareCheckpointer
from .files import CheckpointError
from .periodic import PeriodicCheckpoints

__all__ = ["CheckpointError", "ClassAwareCheckpointer", "PeriodicCheckpoints"]
