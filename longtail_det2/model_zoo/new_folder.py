"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import PartialFolder


def check_vacant(target: Path) -> None:
    """Raises ConfigError if there is something at a path already; an empty folder does not count."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already: nothing is overwritten, choose another folder")


@contextmanager
def folder_that_appears(target: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is complete, and vanishes if it never is.

    Raises:
        OSError: it cannot be made, or something appeared under its name meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with PartialFolder(target) as partial:
        yield partial.folder
        os.rename(partial.folder, target)
