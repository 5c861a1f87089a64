"""Folders that are being made, beside the place that they will have, and what killed runs left of them."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

_STALE_SECONDS = 24 * 3600


def make_partial_folder(path: Path) -> Path:
    """Makes a hidden folder beside `path`, for this process alone, whose name says whose it is."""
    name = f"{_prefix(path)}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder = path.parent / name
    folder.mkdir()
    return folder


def put_in_place(folder: Path, path: Path) -> None:
    """Gives a complete folder its name; what has that name goes, or stays if an error is raised."""
    old: Path | None = None
    if path.exists():
        old = make_partial_folder(path)
        os.replace(path, old)  # a folder replaces an empty one
    try:
        os.replace(folder, path)
    except OSError:
        if old is not None:
            os.replace(old, path)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_stale_folders(path: Path) -> None:
    """Removes partial folders that dead runs left beside `path`.

    A run of this machine is dead when its process is; one of another machine after a day without change.
    """
    for folder in path.parent.glob(f"{glob.escape(_prefix(path))}*-*-*"):
        host, pid, _ = folder.name[len(_prefix(path)) :].rsplit("-", 2)
        if not pid.isdecimal():
            continue  # none of ours
        dead = host == socket.gethostname() and not _is_alive(int(pid))
        try:
            old = time.time() - folder.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if dead or old:
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
