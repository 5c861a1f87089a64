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


def log_ratios(ratios: Mapping[str, tuple[Tensor, Tensor | int]]) -> None:
    """Log quotients of scalars by name, read from the device together; only where :func:`logging_due`.

    Those with a zero divisor are left out.
    """
    storage = event_storage()
    if storage is None:
        return
    both = [one if isinstance(one, Tensor) else torch.tensor(one) for pair in ratios.values() for one in pair]
    device = both[0].device
    values = torch.stack([one.detach().to(device, torch.float64) for one in both]).tolist()
    for name, dividend, divisor in zip(ratios, values[::2], values[1::2], strict=True):
        if divisor > 0:
            storage.put_scalar(name, dividend / divisor)


def name_scope(name: str) -> AbstractContextManager[None]:
    """Prefix the names of what is logged within; nothing outside a trainer."""
    storage = event_storage()
    return storage.name_scope(name) if storage else contextlib.nullcontext()
