"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtail_det2.utils.errors import ConfigError
from longtail_det2.utils.io import PartialFolder


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Give a folder to fill that gets its name when the block ends, and vanishes after an error.

    Raises:
        ConfigError: there is something at `target` already; an empty folder does not count.
        OSError: the folder cannot be made.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already: nothing is overwritten, choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with PartialFolder(target) as partial:
        yield partial.folder
        os.rename(partial.folder, target)
