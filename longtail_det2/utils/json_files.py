"""Reading JSON files that a user named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longtail_det2.utils.errors import DataError


def read_json(path: Path, advice: str = "", error: type[DataError] = DataError) -> Any:
    """The content of a file.

    Args:
        path: of the file.
        advice: what to do about a file that is absent or damaged; follows the message.
        error: what is raised.

    Raises:
        DataError: no such file, it cannot be read, or it is not JSON; in one line.
    """
    end = f"; {advice}" if advice else ""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file{end}") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: not a JSON file, or only a part of one ({reason}){end}") from None
