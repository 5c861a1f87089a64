"""Access to Detectron2's event storage that also works outside a trainer."""

from __future__ import annotations

from detectron2.utils.events import EventStorage, get_event_storage


def event_storage() -> EventStorage | None:
    """Where a trainer collects its scalars; None outside a trainer."""
    try:
        return get_event_storage()
    except AssertionError:
        return None
