"""Files that appear when they are complete, and JSON files that a user named."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from longtail_det2.utils.errors import DataError


def read_json(
    path: Path,
    advice: str = "",
    error: type[DataError] = DataError,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """The content of a file.

    Args:
        path: of the file.
        advice: what to do about a file that is absent or damaged; follows the message.
        error: what is raised.
        object_hook: of `json.loads`.

    Raises:
        DataError: no such file, it cannot be read, or it is not JSON; in one line.
    """
    end = f"; {advice}" if advice else ""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
    except FileNotFoundError:
        raise error(f"{path}: no such file{end}") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not a JSON file, or only a part of one ({reason}){end}") from None


def write_json(path: str | Path, content: Any) -> None:
    """Writes a file of one line, which appears under its name when it is complete."""
    with atomic_text_writer(path) as file:
        json.dump(content, file)
        file.write("\n")


@contextmanager
def atomic_text_writer(path: str | Path) -> Iterator[IO[str]]:
    """A text stream whose file appears under its name only when the block ends without an error."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`, that becomes `path` when the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
