"""Access to Detectron2's event storage that also works outside a trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

LOG_PERIOD = 20
"""Iterations between two readings of a value from the device; reading waits for it."""


def event_storage() -> EventStorage | None:
    """Return the storage of the running trainer; None outside a trainer."""
    try:
        return get_event_storage()
    except AssertionError:
        return None


def logging_due() -> bool:
    """Whether values that have to be read from the device are logged in this iteration."""
    storage = event_storage()
    return storage is not None and (storage.iter + 1) % LOG_PERIOD == 0


def log_ratios(ratios: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Log quotients, read from the device together; those with a zero divisor are left out.

    Call it only where :func:`logging_due`.

    Args:
        ratios: name -> (dividend, divisor), scalars on one device.
    """
    storage = event_storage()
    if storage is None or not ratios:
        return
    pairs = torch.stack([torch.stack([one.double() for one in pair]) for pair in ratios.values()]).tolist()
    for name, (dividend, divisor) in zip(ratios, pairs, strict=True):
        if divisor > 0:
            storage.put_scalar(name, dividend / divisor)


def name_scope(name: str) -> AbstractContextManager[None]:
    """Prefix the names of what is logged within; nothing outside a trainer."""
    storage = event_storage()
    return storage.name_scope(name) if storage else contextlib.nullcontext()
