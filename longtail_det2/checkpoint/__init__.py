"""Checkpoints that know their classes and are never half-written."""

from .checkpointer import ClassAwareCheckpointer

__all__ = ["ClassAwareCheckpointer"]
